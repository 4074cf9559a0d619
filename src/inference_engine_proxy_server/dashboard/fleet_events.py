"""Notes in the journal what happens to backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.telemetry.journal import BACKEND, Journal, Severity

__all__ = ["FleetEvents"]

_SEVERITIES: dict[Health, Severity] = {Health.DOWN: "error", Health.SUSPECT: "warning"}


class FleetEvents(FleetObserver):
    """Notes changes of backends.

    Args:
        fleet: the backends.
        journal: gets the notes.
    """

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self._journal = journal
        self._clock: Callable[[], float] = fleet.clock
        self._seen = {backend: _Seen(backend, fleet.clock()) for backend in fleet.backends}
        fleet.subscribe(self)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        joined = [backend for backend in backends if backend not in self._seen]
        left = [backend for backend in self._seen if backend not in backends]
        changes = [f"{_names(some)} {verb}" for some, verb in ((joined, "joined"), (left, "left")) if some]
        if changes:
            self._journal.note("reload", f"The fleet has changed: {'; '.join(changes)}.")
        now = self._clock()
        self._seen = {backend: self._seen.get(backend) or _Seen(backend, now) for backend in backends}

    def on_reviewed(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        seen = self._seen.get(backend)
        if seen is None:  # it has left the fleet
            return
        state = backend.health.state
        if state is not seen.state:
            now = self._clock()
            text = _text_of(backend, seen.state, now - seen.since)
            severity = _SEVERITIES.get(state, "info")
            self._journal.note("state", text, severity=severity, backend=backend.url, like=state.value)
            seen.state, seen.since = state, now
        if backend.is_draining is not seen.is_draining:
            seen.is_draining = backend.is_draining
            what = (
                "drains backend {0}: it gets no new requests" if seen.is_draining else "puts backend {0} to work again"
            )
            self._journal.note("drain", f"An operator {what.format(BACKEND)}.", backend=backend.url)

    def on_stuck(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        if backend.load.leases:
            reason = backend.health.reason or "an operator asked for it"
            text = f"Requests of backend {BACKEND} move to other backends, as far as they can: {reason}."
            self._journal.note("move", text, severity="warning", backend=backend.url, like="move")


class _Seen:
    """The state of a backend when its latest event was noted."""

    __slots__ = ("is_draining", "since", "state")

    def __init__(self, backend: Backend, now: float) -> None:
        self.state = backend.health.state
        self.since = now
        self.is_draining = backend.is_draining


def _text_of(backend: Backend, before: Health, seconds: float) -> str:
    state, reason = backend.health.state, backend.health.reason
    if state is Health.UP:
        was = "" if before is Health.STARTING else f", after it was {before.value} for {seconds:.0f} s"
        return f"Backend {BACKEND} is up{was}."
    return f"Backend {BACKEND} is {state.value}: {reason.removeprefix('busy: ').rstrip('.')}."


def _names(backends: Sequence[Backend]) -> str:
    return ", ".join(backend.config.name for backend in backends)
