"""All backends, and the evidence about them: answers to polls, and results of requests.

Everything here is synchronous, and the clock is read only when evidence arrives. Observers, which route and dispatch
requests, are called for each change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.difference import Difference
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.fleet.snapshot import FleetSnapshot

__all__ = ["Fleet", "FleetObserver"]

logger = logging.getLogger(__name__)


class FleetObserver:
    """Observes the fleet. Override the methods that you need."""

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """The fleet now consists of ``backends``."""

    def on_reported(self, backend: Backend) -> None:
        """``backend`` reported its state; called before its review."""

    def on_serving_changed(self) -> None:
        """A backend serves other models than before, or its liveness changed."""

    def on_lost(self, backend: Backend) -> None:
        """``backend`` is no longer live."""

    def on_stuck(self, backend: Backend) -> None:
        """``backend`` is stuck, or should become idle: other backends should serve its requests, as far as they can."""

    def on_reviewed(self, backend: Backend) -> None:
        """``backend`` is up to date in every respect; called last."""


class Fleet:
    """The fleet.

    Args:
        backends: its backends, each once.
        refresh_seconds: interval of polls; evidence expires after two intervals.
        allowance: requests that a backend may have beyond its slots.
        clock: a monotonic clock, in seconds.

    Attributes:
        backends: that may get requests, in the order of the configuration.
        watched: all that need a watch: ``backends``, and those that have left the fleet and still have requests of
            this process. If such a backend freezes or dies, its requests move as those of other backends do.
        changed: set when ``watched`` has changed.
        differences: between the replicas of each model, see :class:`~.drift_watch.DriftWatch`.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        refresh_seconds: float,
        allowance: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backends = self.watched = tuple(backends)
        self.changed = asyncio.Event()
        self.differences: tuple[Difference, ...] = ()
        self.clock = clock
        self._allowance = allowance
        self._evidence_seconds = 2 * refresh_seconds
        self._observers: list[FleetObserver] = []

    def __repr__(self) -> str:
        ready = sum(backend.takes_requests for backend in self.backends)
        return f"<Fleet of {len(self.backends)} backends, {ready} in rotation>"

    def subscribe(self, observer: FleetObserver) -> None:
        """Call ``observer`` with every change, after those that subscribed before."""
        self._observers.append(observer)

    def snapshot(self) -> FleetSnapshot:
        """The current state of the fleet."""
        return FleetSnapshot.of(self.backends, self.clock(), self.differences)

    def close(self) -> None:
        """Close idle connections to all backends."""
        for backend in self.backends:
            backend.connections.close()

    # --- for operators

    def replace(self, backends: Iterable[Backend]) -> None:
        """Replace the fleet by ``backends``. Backends that leave get no new requests and finish their current ones."""
        before, self.backends = self.backends, tuple(backends)
        self.watched = (*self.backends, *(one for one in self.watched if one not in self.backends and one.load.leases))
        for backend in before:
            if backend not in self.backends:
                backend.is_draining = True
                backend.takes_requests = False
                backend.connections.keep_alive(wanted=False)
                backend.connections.close()
        for observer in self._observers:
            observer.on_replaced(self.backends)
        self.changed.set()

    def forget_finished(self) -> None:
        """Stop watching backends that have left the fleet and have no requests any more."""
        if len(self.watched) > len(self.backends):
            before, leaving = len(self.watched), self.watched[len(self.backends) :]
            self.watched = (*self.backends, *(one for one in leaving if one.load.leases))
            if len(self.watched) < before:
                self.changed.set()

    def set_draining(self, backend: Backend, *, is_draining: bool = True) -> None:
        """Take ``backend`` out of rotation, or put it back."""
        if backend.is_draining is is_draining:
            return
        backend.is_draining = is_draining
        logger.info("backend %s %s", backend.url, "is draining" if is_draining else "may have requests again")
        self._review(backend)

    def move_requests(self, backend: Backend) -> None:
        """Take requests back from ``backend``, as far as other backends can serve them or continue their streams."""
        for observer in self._observers:
            observer.on_stuck(backend)

    # --- evidence from polls

    def publish(self, backend: Backend, state: BackendState, *, own_at_poll: int, asked_at: float) -> None:
        """Adopt ``state``, which ``backend`` reported.

        Args:
            state: the report.
            own_at_poll: how many of the reported requests came through this proxy: its leases when the poll was sent or
                when it was answered, whichever is more. With the smaller number, short requests would count as foreign
                load.
            asked_at: when the poll was sent. If the backend failed after that, the answer does not count.
        """
        now = self.clock()
        backend.health.answered(state, asked_at=asked_at, now=now)
        if backend.health.reported is not state:
            return
        backend.reported_at = time.time()
        if backend.update_serving(state):
            for observer in self._observers:
                observer.on_serving_changed()
        backend.update_load(state, own_at_poll=own_at_poll, allowance=self._allowance, now=now, asked_at=asked_at)
        for observer in self._observers:
            observer.on_reported(backend)
        self._review(backend)

    def report_silence(self, backend: Backend, reason: str = "") -> None:
        """``backend`` did not answer a poll; ``reason`` says why, if that is known."""
        backend.health.was_silent(reason)
        self._review(backend)

    def report_standstill(self, backend: Backend) -> None:
        """``backend`` makes no progress with its requests, and answered no probe: it is out until it answers a poll."""
        backend.health.stood_still()
        backend.recheck.set()
        self._review(backend)

    def report_refusal(self, backend: Backend, reason: str = "it cannot be reached") -> None:
        """``backend`` could not be reached for a poll."""
        backend.reported_at = time.time()  # a refusal is a report, too
        backend.health.was_unreachable(self.clock(), backend.connections.activity(), reason)
        self._review(backend)

    # --- evidence from requests

    def report_refused_connection(self, backend: Backend, reason: str = "it cannot be reached") -> None:
        """``backend`` could not be reached for a request: it is out of rotation until it answers a poll."""
        self._report_lost_connection(backend, reason, is_refused=True)

    def report_broken_connection(self, backend: Backend) -> None:
        """``backend`` broke a request's connection: it is out of rotation until it answers a poll."""
        self._report_lost_connection(backend, "it broke a connection", is_refused=False)

    def _report_lost_connection(self, backend: Backend, reason: str, *, is_refused: bool) -> None:
        may_suspend = self._may_suspend(backend)
        backend.health.lost_connection(self.clock(), reason, is_refused=is_refused, may_suspend=may_suspend)
        backend.recheck.set()
        self._review(backend)

    def report_failure(self, backend: Backend, reason: str) -> None:
        """``backend`` answered a request with a server error or invalid HTTP."""
        if not backend.health.is_doubtful:
            backend.recheck.set()  # it may be starting; polled at once only the first time, as failures may go on
        backend.health.failed(self.clock(), reason, may_suspend=self._may_suspend(backend))
        self._review(backend)

    def report_timeout(self, backend: Backend) -> None:
        """``backend`` sent no byte of a reply within a deadline."""
        backend.health.timed_out(self.clock())
        self._review(backend)

    def report_success(self, backend: Backend, sent_at: float) -> None:
        """``backend`` answered a request that was sent at ``sent_at``. Call this while its health is doubtful."""
        backend.health.succeeded(sent_at)
        self._review(backend)

    def report_doubt(self, backend: Backend, *, fails_requests: bool) -> None:
        """Another process found ``backend`` out of order, or that it ``fails_requests``: poll it at once."""
        backend.health.was_doubted(fails_requests=fails_requests)
        backend.recheck.set()
        self._review(backend)

    def report_request_to_wait(self, backend: Backend, seconds: float) -> None:
        """``backend`` asked for a pause of ``seconds`` (``Retry-After``)."""
        backend.health.asks_for_rest(self.clock(), seconds)
        self._review(backend)

    def _may_suspend(self, backend: Backend) -> bool:
        """Whether at most half of the fleet is suspended if ``backend`` is; those that are down do not count."""
        suspects = sum(other.health.state is Health.SUSPECT for other in self.backends if other is not backend)
        return 2 * (suspects + 1) <= len(self.backends)

    def _review(self, backend: Backend) -> None:
        health = backend.health
        state, reason, was_stuck, was_live = health.state, health.reason, health.is_stuck, backend.is_live
        backend.review(self.clock(), self._evidence_seconds)
        # Progress during a start is logged as well. Other reasons contain numbers that change all the time.
        if health.state is not state or (state is Health.STARTING and health.reason != reason):
            _log_change(backend)
        is_lost = was_live and not backend.is_live
        for observer in self._observers:
            if is_lost:
                observer.on_lost(backend)
            if backend.is_live is not was_live:
                observer.on_serving_changed()
        if health.is_stuck and not was_stuck:
            for observer in self._observers:
                observer.on_stuck(backend)
        for observer in self._observers:
            observer.on_reviewed(backend)


def _log_change(backend: Backend) -> None:
    state, reason = backend.health.state, backend.health.reason
    if state is Health.UP:
        logger.info("backend %s is up", backend.url)
    elif state is Health.STARTING:
        logger.info("backend %s is starting: %s", backend.url, reason)
    else:
        logger.warning("backend %s is %s: %s", backend.url, state.value, reason)
