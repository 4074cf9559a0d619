from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.dispatch.request_queue import QueuedRequest, QueueLimits, RequestQueue
from inference_engine_proxy_server.errors import CapacityError, ClientError, ProxyError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.health import Health, HealthRules
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits, Origin
from support.fakes.memory import turns
from support.pools import Pool

REFRESH_SECONDS = 3.0


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_pool(clock: Clock, count: int, *, allowance: int = 0, weights: Sequence[float] = ()) -> Pool:
    """A pool of ``count`` backends, none of which has told anything."""
    limits = BackendLimits(connect_seconds=1, first_byte_seconds=1, pause_seconds=1, idle_seconds=1)
    rules = HealthRules(evidence_seconds=2 * REFRESH_SECONDS, suspect_after_seconds=60, slow_start_seconds=30)
    deadlines = Deadlines(clock=clock)
    backends = [
        Backend(
            BackendConfig(url, url.partition("://")[2], weight=weight),
            BackendConnections(Origin.of(url), limits, deadlines),
            HealthTracker(rules, clock(), lambda: 0.0),
            BackendLoad(),
        )
        for url, weight in ((f"http://127.0.0.1:{at + 1}", [*weights, *[1] * count][at]) for at in range(count))
    ]
    fleet = Fleet(backends, REFRESH_SECONDS, allowance, clock)
    return Pool(fleet, RequestQueue[Lease](QueueLimits(requests=100, seconds=30), deadlines))


def ready_pool(clock: Clock, count: int, *, capacity: int | None = None, allowance: int = 0) -> Pool:
    """A pool of ``count`` backends that all are ready."""
    pool = make_pool(clock, count, allowance=allowance)
    for index in range(count):
        publish(pool, index, replace(ready(), capacity=capacity))
    return pool


def suspend(pool: Pool, index: int) -> None:
    """Let a backend fail until it is suspended, if it may be."""
    for _ in range(5):
        pool.report_failure(pool.backends[index], "it answered 500")


def pass_time(pool: Pool, clock: Clock, seconds: float) -> None:
    """Let time pass, with an answer of each backend at its end that what it told still holds."""
    clock.now += seconds
    for index, backend in enumerate(pool.backends):
        publish(pool, index, backend.health.reported)


class Queue:
    """Requests in a pool's line.

    Attributes:
        served: who got a place, in order, and the place.
    """

    def __init__(self, pool: Pool) -> None:
        self.served: dict[str, Lease] = {}
        self.failed: dict[str, Exception] = {}
        self._pool = pool
        self._tasks: list[asyncio.Task[None]] = []

    async def join(
        self, name: str, model: str | None = "m", *, excluded: Sequence[Backend] = (), priority: float = 0
    ) -> None:
        """As the forwarder does it."""
        assert self._pool.lease(Requirements(model), excluded) is None
        take_place = partial(self._pool.try_lease, Requirements(model), excluded)
        lane = (model, *excluded) if excluded else model
        waiter = QueuedRequest(lane, name, 1.0, priority, take_place, self._pool.queue)
        self._tasks.append(asyncio.get_running_loop().create_task(self._wait(name, waiter)))
        await turns(1)

    async def _wait(self, name: str, waiter: QueuedRequest[Lease]) -> None:
        try:
            self.served[name] = await self._pool.queue.wait(waiter)
        except ProxyError as error:
            self.failed[name] = error

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def lease_of(pool: Pool, model: str | None = "m", excluded: Sequence[Backend] = ()) -> Lease:
    """A place that there must be."""
    found = pool.lease(Requirements(model), excluded)
    assert found is not None
    return found


def ready(
    processing: float | None = 0.0, models: Sequence[str] = ("m",), names: ModelNames = ModelNames.STRICT
) -> BackendState:
    entries = tuple({"id": model} for model in models)
    return BackendState(ready=True, requests_processing=processing, models=entries, model_names=names)


BUSY = BackendState(ready=False, reason="busy", requests_processing=9.0)
LOADING = BackendState(ready=False, live=False, reason="loading")


def publish(pool: Pool, index: int, state: BackendState, own_at_poll: int | None = None) -> None:
    backend = pool.backends[index]
    own = backend.load.leases if own_at_poll is None else own_at_poll
    pool.publish(backend, state, own_at_poll=own, asked_at=pool.clock())


def test_burst_between_two_polls_is_spread_evenly(clock: Clock) -> None:
    pool = make_pool(clock, 4)
    for index in range(4):
        publish(pool, index, ready())
    shares = Counter(lease_of(pool, "m").backend.url for _ in range(64))
    assert sorted(shares.values()) == [16, 16, 16, 16]


def test_requests_even_out_foreign_load_without_herding(clock: Clock) -> None:
    pool = make_pool(clock, 4)
    for index, polled in enumerate((0, 3, 3, 3)):
        publish(pool, index, ready(polled))
    shares = Counter(lease_of(pool, "m").backend.url for _ in range(60))
    assert 17 <= shares[pool.backends[0].url] <= 18  # 69 requests in all over four backends
    assert max(shares.values()) <= 18


def test_own_requests_in_a_report_are_not_counted_twice(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    leases = [lease_of(pool, "m") for _ in range(5)]
    publish(pool, 0, ready(processing=7))
    assert pool.backends[0].load.total == 7  # five are ours, two are foreign
    for lease in leases:
        lease.close()
    assert pool.backends[0].load.total == 2


def test_requests_that_end_during_a_poll_are_not_foreign_load(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(processing=5), own_at_poll=5)
    assert pool.backends[0].load.total == 0


def test_foreign_load_is_never_negative(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(processing=0), own_at_poll=4)
    assert pool.backends[0].load.total == 0


def test_closing_a_lease_twice_counts_once(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    first, second = lease_of(pool, "m"), lease_of(pool, "m")
    first.close()
    first.close()
    assert pool.backends[0].load.leases == 1
    second.close()
    assert (pool.backends[0].load.leases, pool.backends[0].load.total) == (0, 0)


def test_requests_in_a_backends_own_queue_are_load(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    state = BackendState(ready=True, requests_processing=2.0, requests_waiting=4.0)
    publish(pool, 0, state)
    assert pool.backends[0].load.total == 6


@pytest.mark.parametrize("state", [BUSY, LOADING])
def test_backend_that_is_not_ready_gets_no_request(clock: Clock, state: BackendState) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, state)
    publish(pool, 1, ready())
    assert {lease_of(pool, None).backend.url for _ in range(10)} == {pool.backends[1].url}


def test_fleet_without_a_live_backend_is_503_with_retry_after(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, LOADING)
    with pytest.raises(CapacityError) as raised:
        lease_of(pool, "m")
    assert (raised.value.status, raised.value.code) == (503, "no_backend_available")
    assert raised.value.retry_after_seconds == REFRESH_SECONDS


def test_busy_fleet_grants_no_lease(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    publish(pool, 0, BUSY)
    assert pool.lease(Requirements("m")) is None


def test_request_goes_to_backends_that_list_its_model(clock: Clock) -> None:
    pool = make_pool(clock, 3)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    publish(pool, 2, ready(models=["c"], names=ModelNames.ANY))
    assert {lease_of(pool, "b").backend.url for _ in range(6)} == {pool.backends[1].url}


@pytest.mark.parametrize("names", [ModelNames.ANY, ModelNames.UNKNOWN])
def test_unlisted_model_goes_to_non_strict_backends(clock: Clock, names: ModelNames) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"], names=names))
    assert {lease_of(pool, "other").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_unlisted_model_is_404_if_all_live_backends_are_strict(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    with pytest.raises(ClientError) as raised:
        lease_of(pool, "other")
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")


def test_model_of_a_backend_that_is_down_is_503_not_404(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    pool.report_refused_connection(pool.backends[1])
    with pytest.raises(CapacityError):
        lease_of(pool, "b")


def test_backend_that_refuses_a_connection_leaves_the_rotation_and_is_polled_at_once(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready())
    publish(pool, 1, ready())
    pool.report_refused_connection(pool.backends[0])
    assert pool.backends[0].recheck.is_set()
    assert {lease_of(pool, "m").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_answer_to_a_poll_from_before_a_failure_does_not_count(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    backend = pool.backends[0]
    asked_at = clock()
    clock.now += 0.1
    pool.report_broken_connection(backend)
    pool.publish(backend, ready(), own_at_poll=0, asked_at=asked_at)
    assert not backend.takes_requests
    clock.now += 0.1
    publish(pool, 0, ready())
    assert backend.takes_requests


def test_excluded_backend_is_not_chosen(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready())
    publish(pool, 1, ready())
    chosen = {lease_of(pool, "m", excluded=[pool.backends[0]]).backend.url for _ in range(6)}
    assert chosen == {pool.backends[1].url}


def test_silent_backend_leaves_the_rotation_after_two_intervals(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    clock.now += 2 * REFRESH_SECONDS - 0.1
    pool.report_silence(pool.backends[0])
    assert pool.backends[0].takes_requests
    clock.now += 0.2
    pool.report_silence(pool.backends[0])
    assert not pool.backends[0].takes_requests
    publish(pool, 0, ready())
    assert pool.backends[0].takes_requests


def test_backend_with_an_old_load_report_counts_its_leases_only_and_ranks_last(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(processing=3))
    publish(pool, 1, ready(processing=3))
    clock.now += 2 * REFRESH_SECONDS + 0.1
    publish(pool, 0, ready(processing=None))  # its /metrics hangs, the rest of it answers
    publish(pool, 1, ready(processing=5))
    stale = pool.backends[0]
    assert (stale.load.total, stale.is_last_choice, stale.takes_requests) == (0, True, True)
    assert lease_of(pool, "m").backend is pool.backends[1]


def test_backend_that_never_reported_a_load_ranks_with_the_others(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(processing=None))
    publish(pool, 1, ready(processing=1))
    assert lease_of(pool, "m").backend is pool.backends[0]


def test_reported_models_hold_until_others_are_reported(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 0, BackendState(ready=True, models=None))
    assert pool.backends[0].serving.model_ids == {"a"}
    publish(pool, 0, ready(models=[]))
    assert pool.backends[0].serving.model_ids == set()


def test_treatment_of_other_names_holds_as_long_as_the_models(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(models=["a"], names=ModelNames.STRICT))
    publish(pool, 0, BackendState(ready=True, models=None))
    with pytest.raises(ClientError):
        lease_of(pool, "other")


def test_model_answers_to_its_aliases(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"], names=ModelNames.ANY))
    entry = {"id": "long-name", "aliases": ["short", 7]}
    publish(pool, 1, BackendState(ready=True, models=(entry,), model_names=ModelNames.STRICT))
    assert {lease_of(pool, "short").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_only_changes_of_state_are_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pool = make_pool(clock, 1)
    for state in (ready(), ready(), BUSY, BUSY, ready()):
        publish(pool, 0, state)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" ", 2)[2] for message in messages] == ["is up", "is busy: busy", "is up"]


def test_leases_survive_a_failure_report(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    leases: list[Lease] = [lease_of(pool, "m") for _ in range(3)]
    pool.report_broken_connection(pool.backends[0])
    for lease in leases:
        lease.close()
    assert (pool.backends[0].load.leases, pool.backends[0].load.total) == (0, 0)


# --- what a backend can work on at a time


def test_backend_gets_no_more_requests_than_it_has_slots(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=3)
    leases = [lease_of(pool) for _ in range(6)]
    assert [backend.load.leases for backend in pool.backends] == [3, 3]
    assert pool.lease(Requirements("m")) is None
    leases[0].close()
    assert lease_of(pool).backend is leases[0].backend


def test_allowance_adds_to_the_slots(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=3, allowance=2)
    for _ in range(5):
        lease_of(pool)
    assert pool.lease(Requirements("m")) is None


def test_foreign_requests_occupy_slots(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, replace(ready(processing=2), capacity=3))
    lease_of(pool)
    assert pool.lease(Requirements("m")) is None


def test_backend_of_unknown_capacity_is_never_full(clock: Clock) -> None:
    pool = ready_pool(clock, 1)
    for _ in range(1000):
        lease_of(pool)


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


# --- who waits


async def test_waiting_request_gets_a_slot_when_one_becomes_free(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=1)
    first = lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    await queue.join("b")
    first.close()
    await turns(2)
    assert list(queue.served) == ["a"]
    queue.served["a"].close()
    await turns(2)
    assert list(queue.served) == ["a", "b"]
    queue.served["b"].close()
    assert (pool.queue.count, pool.requests_in_flight, pool.backends[0].load.total) == (0, 0, 0)


async def test_new_request_does_not_overtake_waiting_ones(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=1)
    first = lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    pool.backends[0].load.limit += 1
    pool.candidate(pool.backends[0]).rerank()
    assert pool.lease(Requirements("m")) is None
    pool.queue.dispatch()
    assert pool.lease(Requirements("m")) is None
    await turns(2)
    assert list(queue.served) == ["a"]
    first.close()


async def test_new_request_for_another_model_does_not_wait(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    for index, model in enumerate(("a", "b")):
        publish(pool, index, replace(ready(models=[model]), capacity=1))
    lease_of(pool, "a")
    queue = Queue(pool)
    await queue.join("waits", "a")
    assert lease_of(pool, "b").backend is pool.backends[1]
    await queue.close()


async def test_request_that_a_backend_failed_goes_before_waiting_ones(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=1)
    leases = [lease_of(pool), lease_of(pool)]
    queue = Queue(pool)
    await queue.join("usual")
    await queue.join("failed once", excluded=[leases[0].backend], priority=float("inf"))
    leases[1].close()
    await turns(2)
    assert list(queue.served) == ["failed once"]
    leases[0].close()
    await turns(2)
    assert list(queue.served) == ["failed once", "usual"]


async def test_request_that_excludes_the_free_backend_does_not_block_others(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=1)
    leases = [lease_of(pool), lease_of(pool)]
    queue = Queue(pool)
    await queue.join("failed there", excluded=[leases[0].backend], priority=float("inf"))
    await queue.join("usual")
    leases[0].close()
    await turns(2)
    assert list(queue.served) == ["usual"]
    queue.served["usual"].close()
    assert lease_of(pool).backend is leases[0].backend
    await queue.close()


async def test_report_that_frees_a_slot_serves_waiting_requests(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, BUSY)
    queue = Queue(pool)
    await queue.join("a", None)
    publish(pool, 0, ready())
    await turns(2)
    assert list(queue.served) == ["a"]


async def test_request_that_waits_for_a_backend_that_goes_down_fails(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=1)
    lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    publish(pool, 0, LOADING)
    await turns(2)
    assert [type(error) for error in queue.failed.values()] == [CapacityError]
    assert pool.queue.count == 0


# --- suspects


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


@pytest.mark.parametrize(("count", "suspended"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (8, 4)])
def test_at_most_half_of_the_fleet_is_suspended_for_failures(clock: Clock, count: int, suspended: int) -> None:
    pool = ready_pool(clock, count)
    for index in range(count):
        suspend(pool, index)
    assert sum(backend.health.state is Health.SUSPECT for backend in pool.backends) == suspended
    assert lease_of(pool).backend.health.state is Health.UP


def test_trial_is_a_single_request(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    pass_time(pool, clock, 6)
    tried, other = pool.backends
    assert tried.takes_requests
    busy = [pool.occupy(other) for _ in range(9)]
    trial = lease_of(pool)
    assert trial.backend is tried
    assert {lease_of(pool).backend for _ in range(6)} == {other}
    pass_time(pool, clock, 1)
    assert {lease_of(pool).backend for _ in range(6)} == {other}
    pool.report_success(tried, sent_at=clock())
    trial.close()
    assert (tried.takes_requests, tried.health.state) == (True, Health.UP)
    for lease in busy:
        lease.close()


def test_trial_whose_client_left_is_followed_by_another(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    pass_time(pool, clock, 6)
    tried, other = pool.backends
    busy = [pool.occupy(other) for _ in range(9)]
    trial = lease_of(pool)
    assert trial.backend is tried
    trial.close()
    pass_time(pool, clock, 1)
    assert lease_of(pool).backend is tried
    for lease in busy:
        lease.close()


# --- models


def test_request_waits_for_the_full_backend_that_lists_its_model(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, replace(ready(models=["a"]), capacity=1))
    publish(pool, 1, ready(models=["b"], names=ModelNames.ANY))
    assert lease_of(pool, "a").backend is pool.backends[0]
    assert pool.lease(Requirements("a")) is None  # another model must not answer in its name


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


# --- operators


def test_draining_backend_gets_no_new_requests_until_it_is_undrained(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    drained, other = pool.backends
    lease = next(lease for lease in (lease_of(pool), lease_of(pool)) if lease.backend is drained)
    pool.set_draining(drained)
    assert {lease_of(pool).backend for _ in range(6)} == {other}
    assert drained.load.leases == 1
    lease.close()
    pass_time(pool, clock, 1)
    assert not drained.takes_requests
    pool.set_draining(drained, is_draining=False)
    assert lease_of(pool).backend is drained


def test_draining_suspect_is_no_last_resort(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    publish(pool, 1, LOADING)
    pool.set_draining(pool.backends[0])
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"))


async def test_undrained_backend_serves_waiting_requests(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=1)
    pool.set_draining(pool.backends[0])
    lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    pool.set_draining(pool.backends[0], is_draining=False)
    await turns(2)
    assert queue.served["a"].backend is pool.backends[0]


async def test_new_fleet_serves_waiting_requests(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=1)
    gone = pool.backends[0]
    lease = lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    newcomers = ready_pool(clock, 1).backends
    pool.replace(newcomers)
    await turns(2)
    assert queue.served["a"].backend is newcomers[0]
    assert (gone.takes_requests, gone.load.leases, pool.fleet.changed.is_set()) == (False, 1, True)
    lease.close()
    assert gone.load.leases == 0


# --- a pause that a backend asked for


def test_backend_that_asked_for_a_pause_gets_no_request_until_it_is_over(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    pool.report_request_to_wait(pool.backends[0], 10)
    assert {lease_of(pool).backend for _ in range(6)} == {pool.backends[1]}
    pass_time(pool, clock, 10)
    assert lease_of(pool).backend is pool.backends[0]


async def test_request_waits_for_a_backend_that_broke_one_connection(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    pool.report_broken_connection(pool.backends[0])
    assert pool.lease(Requirements("m")) is None
    clock.now += 0.01
    pool.report_refusal(pool.backends[0])
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"))


def test_request_that_needs_no_slot_never_waits(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, replace(ready(), capacity=1))
    lease_of(pool)
    assert pool.lease(Requirements("m")) is None
    assert pool.lease(Requirements("m", needs_slot=False)) is not None
