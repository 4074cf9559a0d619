"""All backends, what is known of them, and the places that requests have: the only shared mutable thing.

Everything here is synchronous. No ``await`` can stand between the pick of a backend and its lease, so a burst cannot
send two requests to one free place. Nothing here asks what time it is while a request gets its place: what grows old
is reviewed whenever its backend has been asked, or should have answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.request_queue import RequestQueue
from inference_engine_proxy_server.dispatch.retry import is_repeatable
from inference_engine_proxy_server.errors import RequestMoved
from inference_engine_proxy_server.fleet.backend import Backend, Lease
from inference_engine_proxy_server.fleet.health_tracker import Health
from inference_engine_proxy_server.processes.worker_fairness import WorkerFairness
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.routing.requirements import Requirements

__all__ = ["BackendPool"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.02  # between two looks for places that other workers have freed
_LOOKS_LEFT_TO_OTHERS = 3


class BackendPool:
    """The fleet.

    Args:
        backends: each once.
        line: who waits for a place.
        refresh_seconds: the interval at which each is asked for its state; evidence older than two of them is void.
        allowance: requests that a backend may have beyond those it can work on.
        clock: seconds that only grow.
        turns: who fills a place that gets free; ``None``: there is no other worker.
        chooser: chooses by prompts; ``None``: whoever has the fewest requests is chosen.
        decisions: for who wants to know why requests went where; ``None``: nobody does.

    Attributes:
        changed: set when other backends belong to it than before.
        placement: who of them gets a request.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        line: RequestQueue[Lease],
        refresh_seconds: float,
        allowance: int = 0,
        clock: Callable[[], float] = time.monotonic,
        turns: WorkerFairness | None = None,
        chooser: PromptRouter | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        self.backends = tuple(backends)
        self.changed = asyncio.Event()
        self.line = line
        self.clock = clock
        self.decisions = decisions
        self._turns = turns
        self.placement = Placement(
            self.backends,
            chooser,
            is_shared=turns is not None,
            retry_after_seconds=max(1, math.ceil(refresh_seconds)),
            explains=decisions is not None,
        )
        self._allowance = allowance
        self._evidence_seconds = 2 * refresh_seconds

    # --- for operators

    def replace(self, backends: Iterable[Backend]) -> None:
        """Let these be the fleet. Those that go get no new requests; what they have goes on to its end."""
        before, self.backends = self.backends, tuple(backends)
        for backend in before:
            if backend not in self.backends:
                backend.is_draining = True
                backend.takes_requests = False
                backend.connections.keep_alive(wanted=False)
                backend.connections.close()
        self.placement.take_in(self.backends)
        self.changed.set()
        self._freed()

    def drain(self, backend: Backend, *, is_draining: bool = True) -> None:
        """Give ``backend`` no new requests; or do so again."""
        backend.is_draining = is_draining
        logger.info("backend %s %s", backend.url, "is draining" if is_draining else "may have requests again")
        self._review(backend)

    # --- for requests

    def lease(self, wanted: Requirements, excluded: Collection[Backend] = ()) -> Lease | None:
        """A place on the best backend for ``wanted``; ``None``: all are full, or others wait already.

        Args:
            wanted: what is asked for.
            excluded: backends that have failed this very request. Such a request goes before those who wait.

        Raises:
            CapacityError: nobody who serves it works now.
            ClientError: 404, all live backends are strict about names and none has this one.
        """
        if (
            self.line.count
            and wanted.needs_slot
            and not excluded
            and self.line.is_waited_for(self.placement.lane(wanted))
        ):
            return None
        return self.place(wanted, excluded)

    def place(self, wanted: Requirements, excluded: Collection[Backend] = ()) -> Lease | None:
        """As :meth:`lease`, for whose turn it is."""
        backend = self.placement.best(wanted, excluded)
        if backend is None:
            return None
        lease = Lease(backend, self._freed)
        if wanted.prompt is not None:
            lease.commission = self.placement.commission(wanted, backend)
        if self.decisions is not None:
            lease.decision = self.placement.decision
        if backend.health.on_trial:
            backend.trial = lease
            backend.takes_requests = False
            backend.rerank()
        return lease

    @property
    def requests_in_flight(self) -> int:
        """Requests that backends have now."""
        return sum(backend.leases for backend in self.backends)

    async def look_for_places(self, turns: WorkerFairness) -> None:
        """See every now and then whether other workers have freed a place for who waits here, until cancelled."""
        left = 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            turns.note_waiting(self.line.count)
            # What is left to others for some time they cannot use: they wait for another model.
            left = 0 if turns.is_ours() else (left + 1) % _LOOKS_LEFT_TO_OTHERS
            if not left and self.line.count:
                self.line.dispatch()

    def _freed(self) -> None:
        if self.line.count and (self._turns is None or self._turns.is_ours()):
            self.line.dispatch()

    # --- for evidence from questions

    def publish(self, backend: Backend, told: BackendState, *, own_at_poll: int, asked_at: float) -> None:
        """Take over what ``backend`` told.

        Args:
            told: what it told.
            own_at_poll: our leases on it when it was asked or when it answered, whichever was more; so many of the
                requests it counts are ours. The smaller number would make short requests count as others'.
            asked_at: when it was asked; what was asked before it failed a request is not believed.
        """
        now = self.clock()
        backend.health.answered(told, asked_at=asked_at, now=now)
        if backend.health.told is not told:
            return
        backend.told_at = time.time()
        before = backend.model_ids, backend.model_names, backend.contexts
        backend.take_over_models(told)
        if (backend.model_ids, backend.model_names, backend.contexts) != before:
            self.placement.look_anew()
        backend.take_over_load(told, own_at_poll=own_at_poll, allowance=self._allowance, now=now)
        if self.placement.chooser is not None:
            self.placement.chooser.has_told(self.backends)
        self._review(backend)

    def report_silence(self, backend: Backend) -> None:
        """``backend`` did not answer for its state."""
        backend.health.was_silent()
        self._review(backend)

    def report_refusal(self, backend: Backend) -> None:
        """``backend`` could not be reached to be asked for its state."""
        backend.told_at = time.time()  # that is an answer, too
        backend.health.was_unreachable(self.clock(), backend.connections.activity())
        self._review(backend)

    # --- for evidence from requests

    def report_refused_connection(self, backend: Backend) -> None:
        """``backend`` could not be reached for a request: it is out until it answers for its state."""
        self._report_lost_connection(backend, "it cannot be reached", is_refused=True)

    def report_broken_connection(self, backend: Backend) -> None:
        """``backend`` broke a request's connection: it is out until it answers for its state."""
        self._report_lost_connection(backend, "it broke a connection", is_refused=False)

    def _report_lost_connection(self, backend: Backend, reason: str, *, is_refused: bool) -> None:
        may_suspend = self._may_suspend(backend)
        backend.health.lost_connection(self.clock(), reason, is_refused=is_refused, may_suspend=may_suspend)
        backend.recheck.set()
        self._review(backend)

    def report_failure(self, backend: Backend, reason: str) -> None:
        """``backend`` answered a request with a failure of its own."""
        if not backend.health.is_doubtful:
            backend.recheck.set()  # perhaps it is starting; asked once, since it may go on failing fast
        backend.health.failed(self.clock(), reason, may_suspend=self._may_suspend(backend))
        self._review(backend)

    def report_timeout(self, backend: Backend) -> None:
        """``backend`` kept a request for as long as is allowed without sending anything."""
        backend.health.timed_out(self.clock())
        self._review(backend)

    def report_success(self, backend: Backend, sent_at: float) -> None:
        """``backend`` answered a request well that was sent at ``sent_at``; needed while its health is doubtful."""
        backend.health.succeeded(sent_at)
        self._review(backend)

    def report_request_to_wait(self, backend: Backend, seconds: float) -> None:
        """``backend`` asks (``Retry-After``) for nothing more in the next so many seconds."""
        backend.health.asks_for_rest(self.clock(), seconds)
        self._review(backend)

    def _may_suspend(self, backend: Backend) -> bool:
        """Whether no more than half of the fleet is suspended then; who is down is not counted, nor trusted."""
        suspects = sum(other.health.state is Health.SUSPECT for other in self.backends if other is not backend)
        return 2 * (suspects + 1) <= len(self.backends)

    def _review(self, backend: Backend) -> None:
        health = backend.health
        state, reason, was_stuck, was_live = health.state, health.reason, health.is_stuck, backend.is_live
        backend.review(self.clock(), self._evidence_seconds)
        if backend.is_live is not was_live:
            if was_live and self.placement.chooser is not None:
                self.placement.chooser.forget(backend)
            self.placement.look_anew()
        # What a start waits for is worth a line, too; other reasons change with every number in them.
        if health.state is not state or (state is Health.STARTING and health.reason != reason):
            _log_change(backend)
        if health.is_stuck and not was_stuck:
            self._take_back_requests(backend)
        self._freed()

    def _take_back_requests(self, backend: Backend) -> None:
        """Let the requests that wait there in vain be sent elsewhere, where they may be."""
        for connection, request in backend.connections.unanswered():
            if not isinstance(request, ProxiedRequest):
                continue
            head = request.head
            is_movable = not request.losses and is_repeatable(head.method, head.path)
            if is_movable and self.placement.has_other(request.requirements, (backend,)):
                connection.give_up(RequestMoved("The backend did not answer."))


def _log_change(backend: Backend) -> None:
    state, reason = backend.health.state, backend.health.reason
    if state is Health.UP:
        logger.info("backend %s is up", backend.url)
    elif state is Health.STARTING:
        logger.info("backend %s is starting: %s", backend.url, reason)
    else:
        logger.warning("backend %s is %s: %s", backend.url, state.value, reason)
