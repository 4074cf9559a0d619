"""All backends, and who gets a place on which: the only shared mutable thing.

Everything here is synchronous. No ``await`` can stand between the pick of a backend and its lease, so a burst cannot
send two requests to one free place. Nothing here asks what time it is while a request gets its place: what grows old
is reviewed whenever its backend has been asked, or should have answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.core.backend import Backend, Learning, Lease
from inference_engine_proxy_server.core.balancer import choose
from inference_engine_proxy_server.core.chooser import Chooser
from inference_engine_proxy_server.core.context_fit import Need, SizeLearning, contexts_of, differ_somewhere, fitting
from inference_engine_proxy_server.core.health_tracker import Health
from inference_engine_proxy_server.core.prompt import Prompt
from inference_engine_proxy_server.core.retry import is_repeatable
from inference_engine_proxy_server.core.servers import Servers
from inference_engine_proxy_server.core.turns import Turns
from inference_engine_proxy_server.core.waiting_line import WaitingLine
from inference_engine_proxy_server.errors import CapacityError, ClientError, ProxyError, RequestMoved
from inference_engine_proxy_server.token_sizes import TokenSizes

__all__ = ["BackendPool"]

logger = logging.getLogger(__name__)

_REMEMBERED_MODELS = 1024  # names that clients have asked for
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

    Attributes:
        changed: set when other backends belong to it than before.
        token_sizes: what is known of tokens' length.
        reads_prompts: whether it matters what is to be read: a policy looks at it, or it does not fit everywhere.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        line: WaitingLine[Lease],
        refresh_seconds: float,
        allowance: int = 0,
        clock: Callable[[], float] = time.monotonic,
        turns: Turns | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        self.backends = tuple(backends)
        self.changed = asyncio.Event()
        self.line = line
        self.clock = clock
        self._turns = turns
        self.chooser = chooser
        if chooser is not None:
            chooser.take_in(self.backends)
        self._allowance = allowance
        self._evidence_seconds = 2 * refresh_seconds
        self._retry_after_seconds = max(1, math.ceil(refresh_seconds))
        self._servers: dict[str | None, Servers] = {}  # by model
        self.token_sizes = TokenSizes() if chooser is None else chooser.token_sizes
        self.reads_prompts = chooser is not None

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
        if self.chooser is not None:
            self.chooser.take_in(self.backends)
        self.changed.set()
        self._forget_servers(before)
        self._freed()

    def drain(self, backend: Backend, *, is_draining: bool = True) -> None:
        """Give ``backend`` no new requests; or do so again."""
        backend.is_draining = is_draining
        logger.info("backend %s %s", backend.url, "is draining" if is_draining else "may have requests again")
        self._review(backend)

    # --- for requests

    def lease(
        self,
        model: str | None,
        excluded: Collection[Backend] = (),
        *,
        needs_slot: bool = True,
        prompt: Prompt | None = None,
    ) -> Lease | None:
        """A place on the best backend that serves ``model``; ``None``: all are full, or others wait already.

        A name that a live backend lists goes to backends that list it; any other name to those that answer to any
        name, or are not known to be strict.

        Args:
            model: the name that the request gives; ``None``: it names none, so all backends serve it.
            excluded: backends that have failed this very request. Such a request goes before those who wait.
            needs_slot: it takes one of the places that a backend has; one that does not never waits for a full one.
            prompt: what is to be read; ``None``: whoever has the fewest requests is chosen, whatever the policy, and
                however short its context is.

        Raises:
            CapacityError: nobody who serves it works now.
            ClientError: 404, all live backends are strict about names and none has this one.
        """
        if self.line.count and needs_slot and not excluded and self.line.is_waited_for(self.lane(model, prompt)):
            return None
        return self.place(model, excluded, needs_slot=needs_slot, prompt=prompt)

    def place(
        self,
        model: str | None,
        excluded: Collection[Backend] = (),
        *,
        needs_slot: bool = True,
        prompt: Prompt | None = None,
    ) -> Lease | None:
        """As :meth:`lease`, for whose turn it is."""
        servers = self._servers.get(model) or self._find_servers(model)
        if self._turns is not None:
            servers.rerank()
        backends: Sequence[Backend] = servers.backends
        if prompt is not None:
            backends = self._fitting(servers, prompt)
            free = _free(backends, excluded, needs_slot=needs_slot)
            backend = _best(free) if self.chooser is None or not free else self.chooser.best(free, prompt)
        elif excluded or not needs_slot:
            backend = _best(_free(backends, excluded, needs_slot=needs_slot))
        else:
            backend = servers.best()
        if backend is None:
            backend = self._last_resort(model, backends, excluded)
            if backend is None:
                return None
        lease = Lease(backend, self._freed)
        if prompt is not None:
            lease.commission = self._learning(prompt, backend)
        if backend.health.on_trial:
            backend.trial = lease
            backend.takes_requests = False
            backend.rerank()
        return lease

    def lane(self, model: str | None, prompt: Prompt | None) -> Hashable:
        """Where such requests wait for each other: those that are served by the same backends."""
        if prompt is None:
            return model
        servers = self._servers.get(model) or self._find_servers(model)
        fitting = self._fitting(servers, prompt)
        return model if len(fitting) == len(servers.backends) else (model, frozenset(one.url for one in fitting))

    def has_other(self, model: str | None, excluded: Collection[Backend]) -> bool:
        """Whether a backend that is not ``excluded`` takes requests for ``model``, were it free."""
        servers = self._servers.get(model) or self._find_servers(model)
        return any(backend.takes_requests and backend not in excluded for backend in servers.backends)

    @property
    def requests_in_flight(self) -> int:
        """Requests that backends have now."""
        return sum(backend.leases for backend in self.backends)

    async def look_for_places(self, turns: Turns) -> None:
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

    def _fitting(self, servers: Servers, prompt: Prompt) -> Sequence[Backend]:
        need = None if servers.contexts is None else Need.of(prompt, self.token_sizes)
        return servers.backends if need is None else fitting(servers.backends, servers.contexts or (), need)

    def _learning(self, prompt: Prompt, backend: Backend) -> Learning:
        return SizeLearning(self.token_sizes, prompt) if self.chooser is None else self.chooser.send(prompt, backend)

    def _find_servers(self, model: str | None) -> Servers:
        """The live backends that serve ``model``."""
        found = [backend for backend in self.backends if backend.is_live]
        if model is not None:
            found = [backend for backend in found if model in backend.model_ids] or [
                backend for backend in found if backend.model_names is not ModelNames.STRICT
            ]
        if len(self._servers) >= _REMEMBERED_MODELS:
            self._forget_servers(self.backends)
        kind = (tuple(found), contexts_of(found, model))
        same = (servers for servers in self._servers.values() if (servers.backends, servers.contexts) == kind)
        self._servers[model] = servers = next(same, None) or Servers(*kind)
        return servers

    def _forget_servers(self, backends: Iterable[Backend]) -> None:
        self._servers.clear()
        for backend in backends:
            backend.seats.clear()
        self.reads_prompts = self.chooser is not None or differ_somewhere(one for one in self.backends if one.is_live)

    def _last_resort(
        self, model: str | None, servers: Iterable[Backend], excluded: Collection[Backend]
    ) -> Backend | None:
        """The best suspect with a free place, when there is nobody else to wait for; ``None``: waiting makes sense."""
        others = [backend for backend in servers if not backend.is_draining and backend not in excluded]
        if any(backend.takes_requests or backend.health.state is not Health.SUSPECT for backend in others):
            return None
        if not others:
            raise self._why_nobody(model)
        return _best([backend for backend in others if backend.load < backend.limit])

    def _why_nobody(self, model: str | None) -> ProxyError:
        live = [backend for backend in self.backends if backend.is_live]
        if (
            live
            and model is not None
            and all(backend.model_names is ModelNames.STRICT for backend in live)
            and not any(model in backend.model_ids for backend in self.backends)
        ):
            return ClientError(f"The model '{model[:200]}' is not served here.", status=404, code="model_not_found")
        message = "No backend that serves this is available." if live else "No backend is available."
        return CapacityError(message, retry_after_seconds=self._retry_after_seconds)

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
            self._forget_servers(self.backends)
        backend.take_over_load(told, own_at_poll=own_at_poll, allowance=self._allowance, now=now)
        if self.chooser is not None:
            self.chooser.has_told(self.backends)
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
            if was_live and self.chooser is not None:
                self.chooser.forget(backend)
            self._forget_servers(self.backends)
        # What a start waits for is worth a line, too; other reasons change with every number in them.
        if health.state is not state or (state is Health.STARTING and health.reason != reason):
            _log_change(backend)
        if health.is_stuck and not was_stuck:
            self._take_back_requests(backend)
        self._freed()

    def _take_back_requests(self, backend: Backend) -> None:
        """Let the requests that wait there in vain be sent elsewhere, where they may be."""
        for connection, exchange in backend.connections.unanswered():
            head = exchange.head
            is_movable = not exchange.losses and is_repeatable(head.method, head.path)
            if is_movable and self.has_other(exchange.model, (backend,)):
                connection.give_up(RequestMoved("The backend did not answer."))


def _free(backends: Iterable[Backend], excluded: Collection[Backend], *, needs_slot: bool) -> list[Backend]:
    return [
        backend
        for backend in backends
        if backend.takes_requests and backend not in excluded and (not needs_slot or backend.load < backend.limit)
    ]


def _best(backends: Sequence[Backend]) -> Backend | None:
    if not backends:
        return None
    costs = [backend.cost for backend in backends]
    return backends[choose([backend.weighed() for backend in backends], None if len(set(costs)) == 1 else costs)]


def _log_change(backend: Backend) -> None:
    state, reason = backend.health.state, backend.health.reason
    if state is Health.UP:
        logger.info("backend %s is up", backend.url)
    elif state is Health.STARTING:
        logger.info("backend %s is starting: %s", backend.url, reason)
    else:
        logger.warning("backend %s is %s: %s", backend.url, state.value, reason)
