"""Each request goes to a backend that serves it, and to suspects only as a last resort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.routing.affinity import Affinity
from inference_engine_proxy_server.routing.choice import Choice
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.policies import POLICIES
from inference_engine_proxy_server.routing.requirements import Requirements
from support.clocked_pool import (
    BUSY,
    LOADING,
    REFRESH_SECONDS,
    Clock,
    lease_of,
    make_pool,
    pass_time,
    publish,
    ready,
    ready_pool,
    refusal,
    suspend,
)
from support.pools import Pool


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_request_goes_to_backends_that_list_its_model(clock: Clock) -> None:
    pool = make_pool(clock, 3)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    publish(pool, 2, ready(models=["c"], names=ModelNames.ANY))
    assert {lease_of(pool, "b").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_excluded_backend_is_not_chosen(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready())
    publish(pool, 1, ready())
    chosen = {lease_of(pool, "m", excluded=[pool.backends[0]]).backend.url for _ in range(6)}
    assert chosen == {pool.backends[1].url}


def test_backend_with_an_old_load_report_counts_its_leases_only_and_ranks_last(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(processing=3))
    publish(pool, 1, ready(processing=3))
    clock.now += 2 * REFRESH_SECONDS + 0.1
    publish(pool, 0, ready(processing=None))  # only its /metrics hangs
    publish(pool, 1, ready(processing=5))
    stale = pool.backends[0]
    assert (stale.load.total, stale.is_last_choice, stale.takes_requests) == (0, True, True)
    assert lease_of(pool, "m").backend is pool.backends[1]


def test_backend_that_never_reported_a_load_ranks_with_the_others(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(processing=None))
    publish(pool, 1, ready(processing=1))
    assert lease_of(pool, "m").backend is pool.backends[0]


@pytest.mark.parametrize("state", [BUSY, LOADING])
def test_backend_that_is_not_ready_gets_no_request(clock: Clock, state: BackendState) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, state)
    publish(pool, 1, ready())
    assert {lease_of(pool, None).backend.url for _ in range(10)} == {pool.backends[1].url}


def test_fleet_without_a_live_backend_is_503_with_retry_after(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, LOADING)
    pool.report_refusal(pool.backends[1])
    with pytest.raises(CapacityError) as raised:
        lease_of(pool, "m")
    assert (raised.value.status, raised.value.code) == (503, "no_backend_available")
    assert raised.value.retry_after_seconds == REFRESH_SECONDS


def test_request_without_a_model_may_go_to_any_backend(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    assert {lease_of(pool, None).backend for _ in range(2)} == set(pool.backends)


def test_number_of_remembered_model_names_is_bounded(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(names=ModelNames.ANY))
    for number in range(5000):
        lease_of(pool, f"made up {number}").close()
    assert len(pool.placement._sets) <= 1024  # noqa: SLF001 - that it is bounded


def test_backend_of_three_times_the_weight_gets_three_times_the_requests(clock: Clock) -> None:
    pool = make_pool(clock, 2, weights=[3, 1])
    for index in range(2):
        publish(pool, index, ready())
    shares = Counter(lease_of(pool).backend.url for _ in range(80))
    assert shares == {pool.backends[0].url: 60, pool.backends[1].url: 20}


def test_backend_that_comes_back_gets_its_share_gradually(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    pool.report_broken_connection(pool.backends[0])
    pass_time(pool, clock, 1)
    shares = []
    for _ in range(4):
        leases = [lease_of(pool) for _ in range(110)]
        shares.append(Counter(lease.backend.url for lease in leases)[pool.backends[0].url])
        for lease in leases:
            lease.close()
        pass_time(pool, clock, 10)
    assert shares[0] == 10
    assert shares == sorted(shares)
    assert shares[-1] == 55


def test_suspended_backend_gets_no_request_while_others_work(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    assert pool.backends[0].health.state is Health.SUSPECT
    assert {lease_of(pool).backend for _ in range(6)} == {pool.backends[1]}


async def test_request_waits_for_a_busy_backend_rather_than_go_to_a_suspect(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    publish(pool, 1, BUSY)
    assert pool.lease(Requirements("m")) is None


def test_suspects_get_requests_when_no_other_backend_is_left(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    publish(pool, 1, LOADING)
    assert {lease_of(pool).backend for _ in range(3)} == {pool.backends[0]}


def test_full_suspect_gets_no_request(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=1)
    suspend(pool, 0)
    publish(pool, 1, LOADING)
    lease_of(pool)
    assert pool.lease(Requirements("m")) is None


def test_suspect_that_failed_the_request_is_no_last_resort(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    publish(pool, 1, LOADING)
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"), [pool.backends[0]])


def test_draining_suspect_is_no_last_resort(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    publish(pool, 1, LOADING)
    pool.set_draining(pool.backends[0])
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"))


def test_backend_that_asked_for_a_pause_gets_no_request_until_it_is_over(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    pool.report_request_to_wait(pool.backends[0], 10)
    assert {lease_of(pool).backend for _ in range(6)} == {pool.backends[1]}
    pass_time(pool, clock, 10)
    assert lease_of(pool).backend is pool.backends[0]


def test_home_that_left_the_fleet_still_serves_requests_that_need_it(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    home, other = pool.backends
    needs_home = Requirements("m", affinity=Affinity(b"response", None, home, False, False))
    pool.replace([other])
    lease = pool.lease(needs_home)
    assert lease is not None
    assert lease.backend is home
    assert {lease_of(pool).backend for _ in range(4)} == {other}


# --- decisions


def decided(pool: Pool, requirements: Requirements, excluded: Sequence[Backend] = ()) -> Choice:
    """What a placement that records decisions chooses."""
    placement = Placement(pool.fleet, pool.router, records_decisions=True)
    choice = placement.choose(requirements, excluded)
    assert choice is not None
    return choice


def test_recorded_decision_has_the_ranks_at_the_time_of_the_choice(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    lease = pool.occupy(pool.backends[0])
    choice = decided(pool, Requirements("m"))
    lease.close()
    assert choice.decision is not None
    shown = choice.decision.as_json()
    assert (shown["policy"], shown["model"], shown["chosen"]) == ("least_requests", "m", "127.0.0.1:2")
    assert [(one["name"], one["load"]) for one in shown["candidates"]] == [("127.0.0.1:2", 0), ("127.0.0.1:1", 1)]


def test_recorded_decision_names_the_home_only(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    home = pool.backends[1]
    choice = decided(pool, Requirements("m", affinity=Affinity(b"response", None, home, False, False)))
    assert choice.candidate.backend is home
    assert choice.decision is not None
    shown = choice.decision.as_json()
    assert (shown["policy"], [one["name"] for one in shown["candidates"]]) == ("tied", ["127.0.0.1:2"])


def test_recorded_decision_for_a_suspect_has_the_suspects_only(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    publish(pool, 1, LOADING)
    choice = decided(pool, Requirements("m"))
    assert choice.decision is not None
    assert [one["name"] for one in choice.decision.as_json()["candidates"]] == ["127.0.0.1:1"]


def test_choice_has_no_decision_unless_decisions_are_recorded(clock: Clock) -> None:
    assert lease_of(ready_pool(clock, 2)).choice.decision is None


def test_policy_that_reads_prompts_counts_requests_where_no_prompt_was_read(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    pool.occupy(pool.backends[0])
    lease = pool.lease(Requirements("m", policy=POLICIES["rendezvous"]))
    assert lease is not None
    assert (lease.backend, lease.choice.rule.name) == (pool.backends[1], "least_requests")


def test_request_waits_until_the_first_backend_has_answered(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    assert pool.lease(Requirements("m")) is None
    assert pool.lease(Requirements(None)) is None
    publish(pool, 0, ready())
    assert lease_of(pool, "m").backend is pool.backends[0]


@pytest.mark.parametrize("names", [ModelNames.ANY, ModelNames.UNKNOWN, ModelNames.STRICT])
def test_unlisted_model_waits_for_backends_that_may_list_it(clock: Clock, names: ModelNames) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"], names=names))
    assert lease_of(pool, "a").backend is pool.backends[0]
    assert pool.lease(Requirements("b")) is None
    publish(pool, 1, ready(models=["b"]))
    assert lease_of(pool, "b").backend is pool.backends[1]


def test_unlisted_model_waits_no_longer_than_for_the_first_answers(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"], names=ModelNames.ANY))
    assert pool.lease(Requirements("b")) is None
    pool.report_refusal(pool.backends[1])
    assert refusal(pool, "b") == (503, "no_backend_available", 3)


def test_request_does_not_wait_for_a_backend_that_refused_its_first_poll(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    pool.report_refusal(pool.backends[0])
    assert pool.lease(Requirements("m")) is None
    pool.report_refusal(pool.backends[1])
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"))


def test_request_does_not_wait_for_a_backend_that_loads_its_model(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, LOADING)
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"))


def test_one_unanswered_poll_is_no_failure_yet(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    pool.report_silence(pool.backends[0])
    assert pool.lease(Requirements("m")) is None
    pool.report_silence(pool.backends[0])
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"))


def test_request_does_not_wait_for_a_draining_backend_that_has_not_answered(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, LOADING)
    pool.set_draining(pool.backends[1])
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"))


def test_request_does_not_wait_for_a_backend_whose_configuration_lacks_its_model(clock: Clock) -> None:
    pool = make_pool(clock, 2, configs=[{}, {"models": ("b",)}])
    publish(pool, 0, ready(models=["a"]))
    assert pool.lease(Requirements("b")) is None
    assert refusal(pool, "c") == (404, "model_not_found", None)


def test_backend_that_joins_is_awaited_as_at_the_start(clock: Clock) -> None:
    pool = ready_pool(clock, 1)
    newcomer = make_pool(clock, 2).backends[1]
    assert refusal(pool, "other") == (404, "model_not_found", None)
    pool.replace([*pool.backends, newcomer])
    assert pool.lease(Requirements("other")) is None
    pool.report_refusal(newcomer)
    assert refusal(pool, "other") == (503, "no_backend_available", 3)


def test_request_for_an_unlocated_resource_waits_until_every_backend_is_known(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready())
    affinity = Affinity(b"resp_1", stream=None, home=None, creates_response=False, deletes=False)
    assert pool.lease(Requirements(None, affinity=affinity)) is None
    pool.report_refusal(pool.backends[1])
    found = pool.lease(Requirements(None, affinity=affinity))
    assert found is not None
    assert found.backend is pool.backends[0]
