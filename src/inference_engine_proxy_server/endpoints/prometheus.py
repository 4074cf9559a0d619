"""`/metrics`: what has been served, and what is known of the backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.dispatch.backend_pool import BackendPool
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.health_tracker import Health
from inference_engine_proxy_server.processes.siblings import Answers, Siblings
from inference_engine_proxy_server.routing.expected_time.prefix_index import PrefixIndex
from inference_engine_proxy_server.routing.expected_time.speeds import Speeds
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["MetricsPage", "prometheus_router"]

_METRICS = "metrics"
_FAMILY = b"# HELP "

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


_LEARNED_COUNTERS: tuple[tuple[str, str, Callable[[Backend], float]], ...] = (
    ("backend_prompt_tokens", "Tokens of prompts, as replies told.", lambda backend: backend.work.reuse.sent),
    (
        "backend_prompt_tokens_predicted",
        "Those of them that the backend was thought to hold.",
        lambda backend: backend.work.reuse.predicted,
    ),
    (
        "backend_prompt_tokens_cached",
        "Those of them that it held, as replies told.",
        lambda backend: backend.work.reuse.cached,
    ),
)

_LEARNED_GAUGES: tuple[tuple[str, str, Callable[[Backend], float | None]], ...] = (
    ("backend_prompts_reading", "Prompts that the backend has not read.", lambda backend: backend.work.reading),
    (
        "backend_read_tokens_per_second",
        "Tokens of prompts that it reads in a second, as learned.",
        lambda backend: backend.work.speeds.reads if backend.work.speeds.is_known else None,
    ),
    (
        "backend_seconds_per_token",
        "Seconds for a token of each answer, as learned, with as many as it writes now.",
        lambda backend: _seconds_a_token(backend.work.speeds, backend.work.writing),
    ),
)


def _seconds_a_token(speeds: Speeds, writing: int) -> float | None:
    return speeds.seconds_a_token(max(1, writing)) if speeds.writing_is_known else None


class _LearnedCollector:
    """What policies learn; nothing while none of them does."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        chooser = self._pool.placement.chooser
        if chooser is None or not chooser.policies.learn:
            return
        for name, text, count in _LEARNED_COUNTERS:
            counter = CounterMetricFamily(f"inference_proxy_{name}", text, labels=["backend"])
            for backend in self._pool.backends:
                counter.add_metric([backend.url], count(backend))
            yield counter
        yield from _gauges(_LEARNED_GAUGES, self._pool.backends)
        yield from _of_index(chooser.index, self._pool.backends)


def _of_index(index: PrefixIndex, backends: Iterable[Backend]) -> Iterator[Metric]:
    text = "Bytes of prompts that it is thought to keep."
    kept = GaugeMetricFamily("inference_proxy_backend_kept_prompt_bytes", text, labels=["backend"])
    for backend in backends:
        kept.add_metric([backend.url], index.keeps(backend.number))
    yield kept
    name = "inference_proxy_prefix_index"
    yield GaugeMetricFamily(f"{name}_bytes", "Memory that the index of prompts takes.", index.bytes_used)
    yield GaugeMetricFamily(f"{name}_runs", "Beginnings of prompts, and parts of them, in it.", len(index))


def _gauges(
    gauges: Iterable[tuple[str, str, Callable[[Backend], float | None]]], backends: Iterable[Backend]
) -> Iterator[Metric]:
    for name, text, reading in gauges:
        family = GaugeMetricFamily(f"inference_proxy_{name}", text, labels=["backend"])
        for backend in backends:
            value = reading(backend)
            if value is not None:
                family.add_metric([backend.url], float(value))
        yield family


class _FleetCollector:
    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        yield from _gauges(_GAUGES, self._pool.backends)
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


class MetricsPage:
    """The page for Prometheus: of this process, or of all workers with a label ``worker``.

    Args:
        pool, metrics: what is shown.
        siblings: the other workers; none: there is no label either.
    """

    def __init__(self, pool: BackendPool, metrics: RequestMetrics, siblings: Siblings) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_FleetCollector(pool))
        self._registry.register(_LearnedCollector(pool))
        self._registry.register(metrics)
        ProcessCollector(registry=self._registry)
        self._siblings = siblings

    @property
    def answers(self) -> Answers:
        """What this worker says when it is a sibling."""
        return {_METRICS: self._own}

    async def text(self) -> bytes:
        """The whole page."""
        if not self._siblings.others:
            return generate_latest(self._registry)
        told = await self._siblings.ask(_METRICS)
        up = GaugeMetricFamily("inference_proxy_worker_up", "1 if the worker told its metrics.", labels=["worker"])
        for number, page in sorted({**told, self._siblings.number: b""}.items()):
            up.add_metric([str(number)], float(page is not None))
        pages = [self._own(), *(page for page in told.values() if page is not None), generate_latest(_Just((up,)))]
        return _merged(pages)

    def _own(self) -> bytes:
        return generate_latest(_Just(_labelled(self._registry.collect(), worker=str(self._siblings.number))))


class _Just(Collector):
    """Families that are at hand."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _labelled(families: Iterable[Metric], **labels: str) -> Iterator[Metric]:
    for family in families:
        family.samples = [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]
        yield family


def _merged(pages: Iterable[bytes]) -> bytes:
    """One page that has every family once, with the samples of all ``pages``."""
    families: dict[bytes, list[bytes]] = {}
    for page in pages:
        for block in page.split(_FAMILY)[1:]:
            # A family is its two lines of explanation, and its samples.
            head, kind, samples = block.split(b"\n", 2)
            families.setdefault(head, [kind + b"\n"]).append(samples)
    return b"".join(_FAMILY + head + b"\n" + b"".join(parts) for head, parts in families.items())


def prometheus_router(page: MetricsPage) -> APIRouter:
    """``GET /metrics``, which gives ``page``."""
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def expose() -> Response:
        return Response(await page.text(), media_type=CONTENT_TYPE_LATEST)

    return router
