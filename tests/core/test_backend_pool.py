from collections import Counter
from collections.abc import Sequence

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.core.backend_pool import Backend, BackendPool, Lease
from inference_engine_proxy_server.errors import CapacityError, ClientError
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits, Origin
from inference_engine_proxy_server.wire.deadlines import Deadlines

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


def make_pool(clock: Clock, count: int) -> BackendPool:
    limits = BackendLimits(connect_seconds=1, reply_seconds=1, idle_seconds=1)
    urls = [f"http://127.0.0.1:{port}" for port in range(1, count + 1)]
    backends = [Backend(url, BackendConnections(Origin.of(url), limits, Deadlines())) for url in urls]
    return BackendPool(backends, REFRESH_SECONDS, clock)


def ready(
    processing: float | None = 0.0, models: Sequence[str] = ("m",), names: ModelNames = ModelNames.STRICT
) -> BackendState:
    entries = tuple({"id": model} for model in models)
    return BackendState(ready=True, requests_processing=processing, models=entries, model_names=names)


BUSY = BackendState(ready=False, reason="busy", requests_processing=9.0)
LOADING = BackendState(ready=False, live=False, reason="loading")


def publish(pool: BackendPool, index: int, state: BackendState, own_at_poll: int | None = None) -> None:
    backend = pool.backends[index]
    own = backend.leases if own_at_poll is None else own_at_poll
    pool.publish(backend, state, own_at_poll=own, asked_at=pool.clock())


def test_a_burst_between_two_polls_is_spread_evenly(clock: Clock) -> None:
    pool = make_pool(clock, 4)
    for index in range(4):
        publish(pool, index, ready())
    shares = Counter(pool.lease("m").backend.url for _ in range(64))
    assert sorted(shares.values()) == [16, 16, 16, 16]


def test_foreign_load_is_made_up_for_and_does_not_herd(clock: Clock) -> None:
    pool = make_pool(clock, 4)
    for index, polled in enumerate((0, 3, 3, 3)):
        publish(pool, index, ready(polled))
    shares = Counter(pool.lease("m").backend.url for _ in range(60))
    assert 17 <= shares[pool.backends[0].url] <= 18  # 69 requests in all over four backends
    assert max(shares.values()) <= 18


def test_own_requests_that_a_poll_counts_are_not_counted_twice(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    leases = [pool.lease("m") for _ in range(5)]
    publish(pool, 0, ready(processing=7))
    assert pool.backends[0].load == 7  # five are ours, two are foreign
    for lease in leases:
        lease.close()
    assert pool.backends[0].load == 2


def test_requests_that_ended_during_the_poll_do_not_become_foreign(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(processing=5), own_at_poll=5)
    assert pool.backends[0].load == 0


def test_requests_that_began_after_the_poll_do_not_make_foreign_load_negative(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(processing=0), own_at_poll=4)
    assert pool.backends[0].load == 0


def test_closing_a_lease_twice_counts_once(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    first, second = pool.lease("m"), pool.lease("m")
    first.close()
    first.close()
    assert pool.backends[0].leases == 1
    second.close()
    assert (pool.backends[0].leases, pool.backends[0].load) == (0, 0)


def test_waiting_requests_count_as_load(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    state = BackendState(ready=True, requests_processing=2.0, requests_waiting=4.0)
    publish(pool, 0, state)
    assert pool.backends[0].load == 6


@pytest.mark.parametrize("state", [BUSY, LOADING])
def test_a_backend_that_is_not_ready_is_passed_by(clock: Clock, state: BackendState) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, state)
    publish(pool, 1, ready())
    assert {pool.lease(None).backend.url for _ in range(10)} == {pool.backends[1].url}


def test_nobody_up_is_503_with_retry_after(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, LOADING)
    with pytest.raises(CapacityError) as raised:
        pool.lease("m")
    assert (raised.value.status, raised.value.code) == (503, "no_backend_available")
    assert raised.value.retry_after_seconds == REFRESH_SECONDS


def test_everybody_busy_is_503_with_retry_after(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    publish(pool, 0, BUSY)
    with pytest.raises(CapacityError) as raised:
        pool.lease("m")
    assert (raised.value.code, raised.value.retry_after_seconds) == ("backends_busy", REFRESH_SECONDS)


def test_a_request_goes_where_its_model_is_listed(clock: Clock) -> None:
    pool = make_pool(clock, 3)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    publish(pool, 2, ready(models=["c"], names=ModelNames.ANY))
    assert {pool.lease("b").backend.url for _ in range(6)} == {pool.backends[1].url}


@pytest.mark.parametrize("names", [ModelNames.ANY, ModelNames.UNKNOWN])
def test_an_unlisted_name_goes_to_whom_may_know_it(clock: Clock, names: ModelNames) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"], names=names))
    assert {pool.lease("other").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_an_unlisted_name_is_404_when_all_who_live_are_strict(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    with pytest.raises(ClientError) as raised:
        pool.lease("other")
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")


def test_a_model_whose_backend_is_down_is_503_not_404(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    pool.report_failure(pool.backends[1], "it cannot be reached")
    with pytest.raises(CapacityError):
        pool.lease("b")


def test_what_failed_a_request_is_out_at_once_and_asked_at_once(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready())
    publish(pool, 1, ready())
    pool.report_failure(pool.backends[0], "it cannot be reached")
    assert pool.backends[0].recheck.is_set()
    assert {pool.lease("m").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_an_answer_asked_for_before_a_failure_is_not_believed(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    backend = pool.backends[0]
    asked_at = clock()
    clock.now += 0.1
    pool.report_failure(backend, "it broke a connection")
    pool.publish(backend, ready(), own_at_poll=0, asked_at=asked_at)
    assert not backend.takes_requests
    clock.now += 0.1
    publish(pool, 0, ready())
    assert backend.takes_requests


def test_a_backend_excluded_by_the_request_is_not_chosen(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready())
    publish(pool, 1, ready())
    chosen = {pool.lease("m", excluded=[pool.backends[0]]).backend.url for _ in range(6)}
    assert chosen == {pool.backends[1].url}


def test_silence_counts_after_two_intervals(clock: Clock) -> None:
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


def test_a_load_grown_old_counts_own_leases_only_and_ranks_last(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(processing=3))
    publish(pool, 1, ready(processing=3))
    clock.now += 2 * REFRESH_SECONDS + 0.1
    publish(pool, 0, ready(processing=None))  # its /metrics hangs, the rest of it answers
    publish(pool, 1, ready(processing=5))
    stale = pool.backends[0]
    assert (stale.load, stale.load_is_stale, stale.takes_requests) == (0, True, True)
    assert pool.lease("m").backend is pool.backends[1]


def test_a_backend_that_never_told_a_load_ranks_with_the_others(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(processing=None))
    publish(pool, 1, ready(processing=1))
    assert pool.lease("m").backend is pool.backends[0]


def test_models_told_once_hold_until_others_are_told(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 0, BackendState(ready=True, models=None))
    assert pool.backends[0].model_ids == {"a"}
    publish(pool, 0, ready(models=[]))
    assert pool.backends[0].model_ids == set()


def test_what_a_backend_does_with_other_names_holds_as_long_as_its_models(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(models=["a"], names=ModelNames.STRICT))
    publish(pool, 0, BackendState(ready=True, models=None))
    with pytest.raises(ClientError):
        pool.lease("other")


def test_a_model_answers_to_its_aliases(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"], names=ModelNames.ANY))
    entry = {"id": "long-name", "aliases": ["short", 7]}
    publish(pool, 1, BackendState(ready=True, models=(entry,), model_names=ModelNames.STRICT))
    assert {pool.lease("short").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_only_changes_are_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pool = make_pool(clock, 1)
    for state in (ready(), ready(), BUSY, BUSY, ready()):
        publish(pool, 0, state)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" ", 2)[2] for message in messages] == ["is ready", "takes no requests: busy", "is ready"]


def test_leases_survive_a_failure_report(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    leases: list[Lease] = [pool.lease("m") for _ in range(3)]
    pool.report_failure(pool.backends[0], "it broke a connection")
    for lease in leases:
        lease.close()
    assert (pool.backends[0].leases, pool.backends[0].load) == (0, 0)
