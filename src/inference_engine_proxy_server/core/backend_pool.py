"""All backends, what they told us, and the requests of ours that they have: the only shared mutable thing.

Everything here is synchronous. No ``await`` can stand between the pick of a backend and its lease, so a burst
cannot send two requests to one free place. Nothing here asks what time it is while a request waits for its pick:
what grows old is reviewed whenever its backend has been asked, or should have answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable

from inference_engine_proxy_server.backends.base import BackendState, ModelEntry, ModelNames
from inference_engine_proxy_server.core.balancer import choose_backend
from inference_engine_proxy_server.errors import CapacityError, ClientError, ProxyError
from inference_engine_proxy_server.wire.backend_connections import BackendConnections

__all__ = ["Backend", "BackendPool", "Lease"]

logger = logging.getLogger(__name__)

_NOT_ASKED_YET = BackendState(ready=False, live=False, reason="not asked yet")


class Backend:
    """One backend: what it told us last, and what of ours it has.

    Attributes:
        url: its base URL.
        reply_field: the ``x-backend`` line of the replies it gives.
        credentials: header lines that it knows us by; ``None``: it has no key of ours.
        connections: how requests get there.
        state: the last thing it told us, or what its silence told us.
        told_at: when, in seconds since the epoch; 0 before the first time.
        takes_requests: ready, and proved alive recently enough.
        models: what it serves, as told last; kept while it is down.
        model_ids: their names, aliases included.
        model_names: what it does with other names, as told with them.
        leases: requests of ours that it has now.
        load: those, and what others have sent it as far as we know.
        load_is_stale: what others have sent it was known once and is so no longer.
        recheck: set when it should be asked at once instead of at the next interval.
    """

    __slots__ = (
        "connections", "credentials", "figure_at", "foreign", "leases", "load", "load_is_stale", "model_ids",
        "model_names", "models", "proved_at", "recheck", "reply_field", "sick_since", "state", "takes_requests",
        "told_at", "url",
    )  # fmt: skip

    def __init__(self, url: str, connections: BackendConnections, key: str | None = None) -> None:
        self.url = url
        self.credentials = None if key is None else f"authorization: Bearer {key}\r\n".encode()
        self.reply_field = f"x-backend: {url}\r\n".encode()
        self.connections = connections
        self.state = _NOT_ASKED_YET
        self.told_at = 0.0
        self.takes_requests = False
        self.models: tuple[ModelEntry, ...] = ()
        self.model_ids: frozenset[str] = frozenset()
        self.model_names = ModelNames.UNKNOWN
        self.leases = 0
        self.load = 0.0
        self.load_is_stale = False
        self.recheck = asyncio.Event()
        self.foreign = 0.0  # the part of the load that is not ours
        self.figure_at = -math.inf  # when it last told its load; -inf: not since it came up
        self.proved_at = -math.inf  # when something last proved it alive
        self.sick_since = -math.inf  # when it last failed a request or a probe


class Lease:
    """One request's place on one backend, from the pick until its last byte. Closing it twice does no harm."""

    __slots__ = ("_is_open", "backend")

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._is_open = True
        backend.leases += 1
        backend.load += 1

    def close(self) -> None:
        """Give the place back."""
        if self._is_open:
            self._is_open = False
            self.backend.leases -= 1
            self.backend.load -= 1


class BackendPool:
    """The fleet.

    Args:
        backends: each once.
        refresh_seconds: the interval at which each is asked for its state; evidence older than two of them is void.
        clock: seconds that only grow.
    """

    def __init__(
        self, backends: Iterable[Backend], refresh_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.backends = tuple(backends)
        self._evidence_seconds = 2 * refresh_seconds
        self._retry_after_seconds = max(1, math.ceil(refresh_seconds))
        self.clock = clock

    # --- for requests

    def lease(self, model: str | None, excluded: Collection[Backend] = ()) -> Lease:
        """A place on the best backend that serves ``model``.

        A name that an available backend lists goes to backends that list it; any other name to those that answer
        to any name, or are not known to be strict.

        Args:
            model: the name that the request gives; ``None``: it names none, so all backends serve it.
            excluded: backends that have failed this very request.

        Raises:
            CapacityError: nobody who serves it takes requests now.
            ClientError: 404, all live backends are strict about names and none has this one.
        """
        candidates = [backend for backend in self.backends if backend.takes_requests]
        if excluded:
            candidates = [backend for backend in candidates if backend not in excluded]
        if model is not None:
            candidates = [backend for backend in candidates if model in backend.model_ids] or [
                backend for backend in candidates if backend.model_names is not ModelNames.STRICT
            ]
        if not candidates:
            raise self._why_nobody(model)
        return Lease(choose_backend(candidates))

    def _why_nobody(self, model: str | None) -> ProxyError:
        live = [backend for backend in self.backends if backend.state.live]
        if not live:
            return CapacityError("No backend is available.", retry_after_seconds=self._retry_after_seconds)
        if (
            model is not None
            and all(backend.model_names is ModelNames.STRICT for backend in live)
            and not any(model in backend.model_ids for backend in self.backends)
        ):
            return ClientError(f"The model '{model[:200]}' is not served here.", status=404, code="model_not_found")
        return CapacityError(
            "All backends that serve this are busy.",
            code="backends_busy",
            retry_after_seconds=self._retry_after_seconds,
        )

    # --- for evidence

    def publish(self, backend: Backend, state: BackendState, *, own_at_poll: int, asked_at: float) -> None:
        """Take over what ``backend`` told.

        Args:
            state: what it told.
            own_at_poll: our leases on it when it was asked or when it answered, whichever was more; so many of the
                requests it counts are ours. The smaller number would make short requests count as others'.
            asked_at: when it was asked; what was asked before it failed a request is not believed.
        """
        if asked_at <= backend.sick_since:
            return
        now = self.clock()
        backend.proved_at = now
        backend.told_at = time.time()
        if state.models is not None:
            backend.models = state.models
            backend.model_ids = frozenset(name for entry in state.models for name in _names(entry))
            backend.model_names = state.model_names
        if state.requests_processing is not None:
            polled = state.requests_processing + (state.requests_waiting or 0.0)
            backend.foreign = max(0.0, polled - own_at_poll)
            backend.figure_at = now
        self._review(backend, state)

    def report_silence(self, backend: Backend) -> None:
        """``backend`` did not answer for its state. That alone proves nothing: a long prefill may keep it from it."""
        backend.proved_at = max(backend.proved_at, backend.connections.last_byte_at())
        self._review(backend, backend.state)

    def report_failure(self, backend: Backend, reason: str) -> None:
        """``backend`` refused or broke a connection: no request goes there until it answers for its state again."""
        backend.sick_since = self.clock()
        backend.proved_at = -math.inf
        backend.recheck.set()
        self._review(backend, BackendState(ready=False, live=False, reason=reason))

    def _review(self, backend: Backend, state: BackendState) -> None:
        oldest_valid = self.clock() - self._evidence_seconds
        if state.live and backend.proved_at < oldest_valid:
            state = BackendState(ready=False, live=False, reason="it has been silent for too long")
        if not state.live:
            backend.figure_at = -math.inf
        backend.load_is_stale = -math.inf < backend.figure_at < oldest_valid
        if backend.figure_at < oldest_valid:
            backend.foreign = 0.0
        backend.load = backend.foreign + backend.leases
        _log_change(backend, state)
        backend.state = state
        backend.takes_requests = state.ready


def _names(entry: ModelEntry) -> Iterable[str]:
    """The names that a model answers to; llama.cpp lists its aliases beside its id."""
    aliases = entry.get("aliases")
    return (entry["id"], *(alias for alias in aliases if isinstance(alias, str))) if aliases else (entry["id"],)


def _log_change(backend: Backend, state: BackendState) -> None:
    before = backend.state
    if before is _NOT_ASKED_YET or state.live != before.live or state.ready != before.ready:
        if state.ready:
            logger.info("backend %s is ready", backend.url)
        else:
            logger.warning("backend %s takes no requests: %s", backend.url, state.reason)
