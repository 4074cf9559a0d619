"""A fleet on a clock that tests advance, and reports of its backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.dispatch.request_queue import QueueLimits, RequestQueue
from inference_engine_proxy_server.errors import ProxyError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.health import HealthRules
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits
from inference_engine_proxy_server.wire.origin import Origin
from support.pools import Pool

__all__ = [
    "BUSY",
    "LOADING",
    "REFRESH_SECONDS",
    "Clock",
    "lease_of",
    "make_pool",
    "pass_time",
    "publish",
    "ready",
    "ready_pool",
    "refusal",
    "suspend",
]

REFRESH_SECONDS = 3.0
BUSY = BackendState(ready=False, reason="busy", requests_processing=9.0)
LOADING = BackendState(ready=False, live=False, reason="loading")


class Clock:
    """A clock that only tests advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_pool(
    clock: Clock,
    count: int,
    *,
    allowance: int = 0,
    weights: Sequence[float] = (),
    configs: Sequence[Mapping[str, Any]] = (),
) -> Pool:
    """A pool of ``count`` backends that have not reported yet; ``configs`` as in ``BackendConfig``."""
    limits = BackendLimits(connect_seconds=1, first_byte_seconds=1, pause_seconds=1, idle_seconds=1)
    rules = HealthRules(evidence_seconds=2 * REFRESH_SECONDS, suspect_after_seconds=60, slow_start_seconds=30)
    deadlines = Deadlines(clock=clock)
    backends = [
        Backend(
            BackendConfig(url, url.partition("://")[2], weight=weight, **config),
            BackendConnections(Origin.of(url), limits, deadlines),
            HealthTracker(rules, clock(), lambda: 0.0),
            BackendLoad(),
        )
        for url, weight, config in (
            (f"http://127.0.0.1:{at + 1}", [*weights, *[1] * count][at], [*configs, *[{}] * count][at])
            for at in range(count)
        )
    ]
    fleet = Fleet(backends, REFRESH_SECONDS, allowance, clock)
    return Pool(fleet, RequestQueue[Lease](QueueLimits(requests=100, seconds=30), deadlines))


def ready_pool(clock: Clock, count: int, *, capacity: int | None = None, allowance: int = 0) -> Pool:
    """A pool of ``count`` ready backends."""
    pool = make_pool(clock, count, allowance=allowance)
    for index in range(count):
        publish(pool, index, replace(ready(), capacity=capacity))
    return pool


def suspend(pool: Pool, index: int) -> None:
    """Let a backend fail often enough to be suspended."""
    for _ in range(5):
        pool.report_failure(pool.backends[index], "it answered 500")


def pass_time(pool: Pool, clock: Clock, seconds: float) -> None:
    """Advance the clock; then every backend repeats its latest report."""
    clock.now += seconds
    for index, backend in enumerate(pool.backends):
        publish(pool, index, backend.health.reported)


def lease_of(pool: Pool, model: str | None = "m", excluded: Sequence[Backend] = ()) -> Lease:
    """A lease that the pool must grant."""
    found = pool.lease(Requirements(model), excluded)
    assert found is not None
    return found


def refusal(pool: Pool, model: str) -> tuple[int, str, float | None]:
    """Status, code and ``Retry-After`` of the error for a request that no backend may have."""
    with pytest.raises(ProxyError) as raised:
        lease_of(pool, model)
    return raised.value.status, raised.value.code, raised.value.retry_after_seconds


def ready(
    processing: float | None = 0.0, models: Sequence[str] = ("m",), names: ModelNames = ModelNames.STRICT
) -> BackendState:
    entries = tuple({"id": model} for model in models)
    return BackendState(ready=True, requests_processing=processing, models=entries, model_names=names)


def publish(pool: Pool, index: int, state: BackendState, own_at_poll: int | None = None) -> None:
    backend = pool.backends[index]
    own = backend.load.leases if own_at_poll is None else own_at_poll
    pool.publish(backend, state, own_at_poll=own, asked_at=pool.clock())
