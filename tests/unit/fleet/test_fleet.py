"""Evidence from polls and requests changes the state of the backends."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.fleet.health import Health
from support.clocked_pool import (
    BUSY,
    REFRESH_SECONDS,
    Clock,
    lease_of,
    make_pool,
    publish,
    ready,
    ready_pool,
    suspend,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_own_requests_in_a_report_are_not_counted_twice(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    leases = [lease_of(pool, "m") for _ in range(5)]
    publish(pool, 0, ready(processing=7))
    assert pool.backends[0].load.total == 7  # five leases, two foreign requests
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


def test_requests_in_a_backends_own_queue_are_load(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    state = BackendState(ready=True, requests_processing=2.0, requests_waiting=4.0)
    publish(pool, 0, state)
    assert pool.backends[0].load.total == 6


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


def test_reported_models_hold_until_others_are_reported(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 0, BackendState(ready=True, models=None))
    assert pool.backends[0].serving.model_ids == {"a"}
    publish(pool, 0, ready(models=[]))
    assert pool.backends[0].serving.model_ids == set()


def test_only_changes_of_state_are_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pool = make_pool(clock, 1)
    for state in (ready(), ready(), BUSY, BUSY, ready()):
        publish(pool, 0, state)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" ", 2)[2] for message in messages] == ["is up", "is busy: busy", "is up"]


@pytest.mark.parametrize(("count", "suspended"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (8, 4)])
def test_at_most_half_of_the_fleet_is_suspended_for_failures(clock: Clock, count: int, suspended: int) -> None:
    pool = ready_pool(clock, count)
    for index in range(count):
        suspend(pool, index)
    assert sum(backend.health.state is Health.SUSPECT for backend in pool.backends) == suspended
    assert lease_of(pool).backend.health.state is Health.UP


def test_backend_that_refuses_a_connection_leaves_the_rotation_and_is_polled_at_once(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready())
    publish(pool, 1, ready())
    pool.report_refused_connection(pool.backends[0])
    assert pool.backends[0].recheck.is_set()
    assert {lease_of(pool, "m").backend.url for _ in range(6)} == {pool.backends[1].url}
