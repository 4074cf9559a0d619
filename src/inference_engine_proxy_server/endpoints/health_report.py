"""The state of the fleet, as `/health` and the page `/` show it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from inference_engine_proxy_server.dashboard.backend_facts import differences_of, facts_of
from inference_engine_proxy_server.discovery.union import Member
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot

__all__ = ["HealthReport"]


class HealthReport:
    """Makes reports.

    Args:
        dispatcher: the fleet and the queue.
        sources: what each source of backends has found.
        queue_limit: how many requests may wait.
        needs_key: requests to engines need an API key.
        hides_names: show the addresses of backends only to clients with a key; number them for others.
        shared_state: describes the state that replicas share; ``None`` when they share none.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        sources: Callable[[], Sequence[Member]],
        *,
        queue_limit: int,
        needs_key: bool,
        hides_names: bool,
        shared_state: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._sources = sources
        self._queue_limit = queue_limit
        self._needs_key = needs_key
        self._hides_names = hides_names
        self._shared_state = shared_state

    def report(self, *, has_key: bool) -> dict[str, Any]:
        """The report for a client, which has an API key or not."""
        fleet = self._dispatcher.fleet.snapshot()
        backends = fleet.backends
        is_hidden = self._hides_names and not has_key
        rows = [(f"backend-{at}" if is_hidden else backend.url, backend) for at, backend in enumerate(backends, 1)]
        names = {backend.url: name for name, backend in rows}
        available = [name for name, backend in rows if backend.takes_requests]
        status = "unavailable" if not available else "ok" if len(available) == len(rows) else "degraded"
        return {
            "status": status,
            "available_backends": available,
            "total_backends": len(rows),
            "timestamp": time.time(),
            "queue": {"requests": self._dispatcher.requests_waiting, "limit": self._queue_limit},
            "needs_key": self._needs_key,
            "shared_state": None if self._shared_state is None else self._shared_state(),
            "sources": [] if is_hidden else list(map(_described, self._sources())),
            "differences": differences_of(fleet, names, with_versions=not is_hidden),
            "details": [{"backend": name, **_details(backend)} for name, backend in rows],
        }


def _described(source: Member) -> dict[str, Any]:
    return {
        "source": source.name,
        "backends": len(source.backends),
        "answered_at": source.answered_at,
        "problem": source.problem or None,
    }


def _details(backend: BackendSnapshot) -> dict[str, Any]:
    reported = backend.reported
    return {
        "ready": backend.takes_requests,
        "live": backend.is_live,
        "shown_state": backend.shown_state,
        **facts_of(backend),
        "limit": _finite(backend.limit),
        "slots": _finite(backend.slots),
        "processing": reported.requests_processing if backend.is_live else None,
        "waiting": reported.requests_waiting if backend.is_live else None,
        "metrics": {
            "timestamp": backend.reported_at,
            # By contract 0, also when unknown; see processing and waiting above.
            "requests_processing": reported.requests_processing or 0.0,
            "requests_waiting": reported.requests_waiting or 0.0,
            "ready": backend.takes_requests,
            **reported.figures,
        },
    }


def _finite(number: float) -> float | None:
    return number if number < math.inf else None
