"""One moment of the whole proxy, and its JSON for each audience; docs/dashboard.md describes every field."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.dashboard.audience import Audience
from inference_engine_proxy_server.dashboard.backend_facts import differences_of, facts_of
from inference_engine_proxy_server.dashboard.in_flight import MINUTES
from inference_engine_proxy_server.dashboard.live_requests import LiveRequest, longest
from inference_engine_proxy_server.dashboard.merged_events import MergedEvent
from inference_engine_proxy_server.dashboard.traffic import Sums, Window
from inference_engine_proxy_server.dashboard.workers import Collected
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot, FleetSnapshot
from inference_engine_proxy_server.telemetry.journal import BACKEND

__all__ = ["Facts", "Snapshot"]

_PUBLIC_EVENTS = frozenset({"state", "drain"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What never changes while the process runs.

    Attributes:
        policy: the balancing policy.
        queue_limit: how many requests may wait.
        started_at: seconds since the epoch.
    """

    policy: str
    queue_limit: int
    started_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment.

    Attributes:
        at: seconds since the epoch.
        facts: what never changes.
        fleet: the backends, as this worker sees them.
        queue: requests that wait, in all workers.
        collected: the parts of all workers.
        sources: the source of each backend, by base URL.
    """

    at: float
    facts: Facts
    fleet: FleetSnapshot
    queue: int
    collected: Collected
    sources: Mapping[str, str] = field(default_factory=dict)

    def as_json(self, audience: Audience, events: list[MergedEvent]) -> dict[str, Any]:
        """The snapshot for ``audience``, with those of ``events`` that it may see."""
        names = audience.names(self.fleet.backends)
        return {
            "version": __version__,
            "at": self.at,
            "started_at": self.facts.started_at,
            "audience": "operator" if audience.is_operators else "public",
            "admin_key": audience.admin_key,
            "workers": {"count": self.collected.count, "silent": self.collected.silent},
            "policy": self.facts.policy,
            "fleet": self._fleet(),
            "differences": differences_of(self.fleet, names, with_versions=audience.is_operators),
            "backends": self._backends(audience, names),
            "requests": self._requests(audience, names),
            "queue": self._queue(audience),
            "events": [_event(event, names) for event in events if _is_seen_by(audience, event)],
        }

    def _fleet(self) -> dict[str, Any]:
        backends = self.fleet.backends
        available = sum(backend.takes_requests for backend in backends)
        status = "unavailable" if not available else "ok" if available == len(backends) else "degraded"
        live = self.fleet.live
        slots = [backend.slots for backend in live if backend.slots < math.inf]
        return {
            "status": status,
            "available": available,
            "total": len(backends),
            "slots": sum(slots) if slots else None,
            "in_flight": sum(backend.requests_in_flight for backend in backends),
            "processing": _sum_known(backend.reported.requests_processing for backend in live),
            "waiting": _sum_known(backend.reported.requests_waiting for backend in live),
            "queue": self.queue,
            "queue_limit": self.facts.queue_limit,
            "errors_per_second": self._rate(lambda window: window.total.errors),
            **self._rates(lambda window: window.total),
        }

    def _backends(self, audience: Audience, names: Mapping[str, str]) -> list[dict[str, Any]]:
        in_flight: dict[str, list[float]] = {}
        for part in self.collected.parts:  # the longest: a worker that has just started knows less
            for url, means in part.in_flight.items():
                in_flight[url] = max(in_flight.get(url, []), means, key=len)
        return [
            {
                "name": names[backend.url],
                "url": backend.url if audience.sees_addresses else None,
                **_state_of(backend),
                "source": self.sources.get(backend.url) if audience.is_operators else None,
                "engine_version": backend.reported.engine_version if audience.is_operators else None,
                "errors_per_minute": self._errors_per_minute(backend.url),
                **self._rates(lambda window, url=backend.url: window.by_backend.get(url, _NOTHING)),  # type: ignore[misc]
                **self._hit_rates(backend.url),
                "recent": [None] * (MINUTES - len(in_flight.get(backend.url, ()))) + in_flight.get(backend.url, []),
            }
            for backend in self.fleet.backends
        ]

    def _rates(self, sums_of: Callable[[Window], Sums]) -> dict[str, Any]:
        latencies = Sums()
        for part in self.collected.parts:
            latencies.add(sums_of(part.minute))
        return {
            "requests_per_second": self._rate(lambda window: sums_of(window).requests),
            "tokens_in_per_second": self._rate(lambda window: sums_of(window).tokens_in),
            "tokens_out_per_second": self._rate(lambda window: sums_of(window).tokens_out),
            "ttft_p50": latencies.percentile(0.5),
            "ttft_p95": latencies.percentile(0.95),
        }

    def _rate(self, number_of: Callable[[Window], int]) -> float:
        return round(sum(number_of(part.lately) / part.lately.seconds for part in self.collected.parts), 3)

    def _errors_per_minute(self, url: str) -> float:
        windows = [part.minute for part in self.collected.parts]
        return round(
            sum(window.by_backend.get(url, _NOTHING).errors * 60 / max(window.seconds, 60) for window in windows)
        )

    def _hit_rates(self, url: str) -> dict[str, Any]:
        hits = [part.hits[url] for part in self.collected.parts if url in part.hits]
        tokens = sum(one.prompt_tokens for one in hits)
        return {
            "predicted_hit_rate": round(sum(one.predicted_tokens for one in hits) / tokens, 3) if tokens else None,
            "real_hit_rate": round(sum(one.cached_tokens for one in hits) / tokens, 3) if tokens else None,
        }

    def _requests(self, audience: Audience, names: Mapping[str, str]) -> dict[str, Any]:
        parts = [part.requests for part in self.collected.parts]
        shown = longest(request for part in parts for request in part.shown) if audience.is_operators else []
        return {"total": sum(part.total for part in parts), "shown": [_request(request, names) for request in shown]}

    def _queue(self, audience: Audience) -> dict[str, Any]:
        parts = [part.requests for part in self.collected.parts]
        by_key: Counter[str] = Counter()
        for part in parts:
            by_key.update(part.waiting_by_key)
        waits = [part.expected_wait for part in parts if part.expected_wait is not None]
        ranked = by_key.most_common() if audience.is_operators else []
        return {
            "by_key": [{"key": key or None, "requests": count} for key, count in ranked],
            "expected_wait": max(waits, default=None),
        }


_NOTHING = Sums()


def _state_of(backend: BackendSnapshot) -> dict[str, Any]:
    reported = backend.reported
    facts = facts_of(backend)
    in_flight = facts.pop("requests_in_flight")
    return {
        "shown_state": backend.shown_state,
        **facts,
        "takes_requests": backend.takes_requests,
        "tier": backend.tier,
        "limit": _finite(backend.limit),
        "slots": _finite(backend.slots),
        "in_flight": in_flight,
        "processing": reported.requests_processing if backend.is_live else None,
        "waiting": reported.requests_waiting if backend.is_live else None,
        "kv_cache_use": reported.context_use if backend.is_live else None,
    }


def _request(request: LiveRequest, names: Mapping[str, str]) -> dict[str, Any]:
    row = {name: getattr(request, name) for name in LiveRequest.__struct_fields__}
    urls = {"backend": request.backend, "shadow": request.shadow}
    return {**row, **{field: url and names.get(url, url) for field, url in urls.items()}}


def _event(merged: MergedEvent, names: Mapping[str, str]) -> dict[str, Any]:
    event = merged.event
    name = None if event.backend is None else names.get(event.backend, "that has left")
    return {
        "id": merged.id,
        "at": event.at,
        "first_at": event.first_at,
        "kind": event.kind,
        "severity": event.severity,
        "backend": name,
        "text": event.text.replace(BACKEND, name or ""),
        "count": merged.count,
    }


def _is_seen_by(audience: Audience, merged: MergedEvent) -> bool:
    return audience.is_operators or merged.event.kind in _PUBLIC_EVENTS


def _sum_known(counts: Any) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _finite(number: float) -> float | None:
    return number if number < math.inf else None
