"""`/metrics`: what has been served, and what is known of the backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.core.backend import Backend
from inference_engine_proxy_server.core.backend_pool import BackendPool
from inference_engine_proxy_server.core.health_tracker import Health
from inference_engine_proxy_server.metrics import RequestMetrics

__all__ = ["prometheus_router"]

_GAUGES: tuple[tuple[str, str, Callable[[Backend], float | None]], ...] = (
    ("backend_live", "1 if the backend works, busy or not.", lambda backend: backend.is_live),
    ("backend_ready", "1 if the backend takes new requests.", lambda backend: backend.takes_requests),
    ("backend_draining", "1 if an operator drains the backend.", lambda backend: backend.is_draining),
    ("requests_in_flight", "Requests of ours that the backend has now.", lambda backend: backend.leases),
    ("backend_load", "Those, and what others have sent it as far as known.", lambda backend: backend.load),
    (
        "backend_requests_running",
        "Requests it says it is working on.",
        lambda backend: backend.health.told.requests_processing,
    ),
    (
        "backend_requests_waiting",
        "Requests it says it has queued.",
        lambda backend: backend.health.told.requests_waiting,
    ),
    ("backend_state_timestamp_seconds", "When it last told its state.", lambda backend: backend.told_at),
)


class _FleetCollector:
    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        for name, text, reading in _GAUGES:
            family = GaugeMetricFamily(f"inference_proxy_{name}", text, labels=["backend"])
            for backend in self._pool.backends:
                value = reading(backend)
                if value is not None:
                    family.add_metric([backend.url], float(value))
            yield family
        yield self._states()
        line = self._pool.line
        yield GaugeMetricFamily("inference_proxy_queue_requests", "Requests that wait for a backend.", line.count)
        refusals = CounterMetricFamily(
            "inference_proxy_queue_refusals", "Requests sent away from the queue.", labels=["reason"]
        )
        refusals.add_metric(["full"], line.rejections)
        refusals.add_metric(["timeout"], line.timeouts)
        yield refusals
        yield InfoMetricFamily("inference_proxy_build", "The running version.", {"version": __version__})

    def _states(self) -> Metric:
        family = GaugeMetricFamily(
            "inference_proxy_backend_state", "1 for the state that the backend is in.", labels=["backend", "state"]
        )
        for backend in self._pool.backends:
            for state in Health:
                family.add_metric([backend.url, state.value], float(backend.health.state is state))
        return family


def prometheus_router(pool: BackendPool, metrics: RequestMetrics) -> APIRouter:
    """``GET /metrics`` over ``pool`` and ``metrics``."""
    registry = CollectorRegistry()
    registry.register(_FleetCollector(pool))
    registry.register(metrics)
    ProcessCollector(registry=registry)
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def expose() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
