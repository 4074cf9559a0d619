"""Evidence from polls and requests changes the state of the backends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import FleetObserver
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


def test_draining_is_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pool = ready_pool(clock, 1)
    caplog.clear()
    for is_draining in (False, True, True, False):
        pool.fleet.set_draining(pool.backends[0], is_draining=is_draining)
    url = pool.backends[0].url
    assert caplog.messages == [f"backend {url} is draining", f"backend {url} may have requests again"]


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


# --- observers


class Recorder(FleetObserver):
    """Records the events it is called with."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        self.events.append(f"replaced by {len(backends)}")

    def on_reported(self, backend: Backend) -> None:
        self.events.append("reported")

    def on_serving_changed(self) -> None:
        self.events.append("serving changed")

    def on_lost(self, backend: Backend) -> None:
        self.events.append("lost")

    def on_stuck(self, backend: Backend) -> None:
        self.events.append("stuck")

    def on_reviewed(self, backend: Backend) -> None:
        self.events.append("reviewed")


def test_observers_learn_of_each_change_in_order(clock: Clock) -> None:
    pool, recorder = make_pool(clock, 1), Recorder()
    pool.fleet.subscribe(recorder)
    publish(pool, 0, ready())
    assert recorder.events == ["serving changed", "reported", "serving changed", "reviewed"]
    recorder.events.clear()
    publish(pool, 0, ready())
    assert recorder.events == ["reported", "reviewed"]
    recorder.events.clear()
    pool.report_refused_connection(pool.backends[0])
    assert recorder.events == ["lost", "serving changed", "stuck", "reviewed"]
    recorder.events.clear()
    pool.report_refused_connection(pool.backends[0])
    assert recorder.events == ["reviewed"]
    recorder.events.clear()
    pool.replace([])
    assert recorder.events == ["replaced by 0"]


def test_plain_observer_ignores_every_change(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    pool.fleet.subscribe(FleetObserver())
    publish(pool, 0, ready())
    pool.report_refused_connection(pool.backends[0])
    pool.replace([])
    assert pool.backends == ()


def test_backend_in_a_debugger_shows_its_state_and_its_load(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(processing=2))
    lease = pool.occupy(pool.backends[0])
    [backend] = pool.backends
    assert repr(backend) == (
        "<Backend http://127.0.0.1:1 up takes_requests <BackendLoad leases=1 foreign=2 total=3 limit=inf>>"
    )
    assert repr(backend.health) == "<HealthTracker up <Suspension active=False until=-inf falls=0 ''>>"
    assert repr(lease) == f"<Lease open on {backend!r}>"
    assert repr(lease.choice.candidate) == f"<Candidate 0 cost=1 of {backend!r}>"
    assert repr(lease.choice) == f"<Choice by least_requests among 1: {lease.choice.candidate!r}>"
    assert repr(pool.fleet) == "<Fleet of 1 backends, 1 in rotation>"
    assert repr(pool.placement) == "<Placement among 1 backends by least_requests, 0 models by their own policy>"
    assert repr(pool.dispatcher) == "<Dispatcher 1 leases, <RequestQueue 0 waiting in 0 lanes>>"


def test_backend_that_has_left_is_watched_while_it_has_requests(clock: Clock) -> None:
    pool = ready_pool(clock, 3)
    busy, idle, stays = pool.backends
    busy.load.leases = 1
    pool.fleet.replace([stays])
    assert list(pool.fleet.watched) == [stays, busy]

    pool.fleet.changed.clear()
    pool.fleet.forget_finished()
    assert not pool.fleet.changed.is_set()
    pool.fleet.replace([idle, stays])
    assert list(pool.fleet.watched) == [idle, stays, busy]

    pool.fleet.changed.clear()
    busy.load.leases = 0
    pool.fleet.forget_finished()
    assert list(pool.fleet.watched) == [idle, stays]
    assert pool.fleet.changed.is_set()
