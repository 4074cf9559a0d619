from __future__ import annotations

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.dashboard.fleet_events import FleetEvents
from support.dashboards import Board
from support.pools import READY, publish

A = "http://a:1"


class Watched(Board):
    def __init__(self, *urls: str) -> None:
        super().__init__(urls)
        FleetEvents(self.pool.fleet, self.journal)
        self.backend = self.pool.backends[0]

    @property
    def events(self) -> list[tuple[str, str, str]]:
        return [(event.kind, event.severity, event.text) for event in self.journal.since()]


def test_changes_of_state_are_events_with_reasons() -> None:
    watched = Watched(A)
    publish(watched.pool)
    publish(watched.pool)
    publish(watched.pool, BackendState(ready=False, reason="busy: 7 requests processing, limit 6"))
    watched.pool.report_refusal(watched.backend, "it refuses connections")

    assert watched.events == [
        ("state", "info", "Backend {backend} is up."),
        ("state", "info", "Backend {backend} is busy: 7 requests processing, limit 6."),
        ("state", "error", "Backend {backend} is down: it refuses connections."),
    ]


def test_recovery_tells_how_long_it_took() -> None:
    watched = Watched(A)
    publish(watched.pool)
    watched.pool.report_refusal(watched.backend, "it refuses connections")
    publish(watched.pool, READY)

    up, down = watched.journal.since()
    assert (up.text, up.count) == ("Backend {backend} is up, after it was down for 0 s.", 2)
    assert up.at >= down.at


def test_operators_commands_and_moves_are_events() -> None:
    watched = Watched(A)
    publish(watched.pool)
    with_lease = watched.pool.occupy(watched.backend)
    watched.pool.set_draining(watched.backend)
    watched.pool.fleet.move_requests(watched.backend)
    with_lease.close()
    watched.pool.fleet.move_requests(watched.backend)  # has no requests any more
    watched.pool.set_draining(watched.backend, is_draining=False)

    assert [event for event in watched.events if event[0] != "state"] == [
        ("drain", "info", "An operator drains backend {backend}: it gets no new requests."),
        (
            "move",
            "warning",
            "Requests of backend {backend} move to other backends, as far as they can: an operator asked for it.",
        ),
        ("drain", "info", "An operator puts backend {backend} to work again."),
    ]


def test_backends_that_join_and_leave_are_named() -> None:
    watched, other = Watched(A), Board(["http://c:1", "http://d:1"])

    watched.pool.replace(other.pool.backends)

    assert watched.events == [("reload", "info", "The fleet has changed: c:1, d:1 joined; a:1 left.")]
    watched.pool.set_draining(watched.backend, is_draining=False)  # of a backend that has left
    assert len(watched.events) == 1
