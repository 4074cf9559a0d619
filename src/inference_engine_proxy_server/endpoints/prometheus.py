"""`/metrics`: counters of served requests, and the state of the backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.endpoints.shadow_metrics import ShadowCollector
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot
from inference_engine_proxy_server.processes.siblings import Answers, Siblings
from inference_engine_proxy_server.routing.learned import BackendLearning
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.watched_placement import WatchedPlacement
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["MetricsPage", "prometheus_router"]

_METRICS = "metrics"
_FAMILY = b"# HELP "

B = TypeVar("B", BackendSnapshot, BackendLearning)

_GAUGES: tuple[tuple[str, str, Callable[[BackendSnapshot], float | None]], ...] = (
    ("backend_live", "1 if the backend works, busy or not.", lambda backend: backend.is_live),
    ("backend_ready", "1 if the backend takes new requests.", lambda backend: backend.takes_requests),
    ("backend_draining", "1 if an operator drains the backend.", lambda backend: backend.is_draining),
    ("requests_in_flight", "Requests of this proxy on the backend now.", lambda backend: backend.leases),
    ("backend_load", "All requests of the backend, as far as known.", lambda backend: backend.load),
    (
        "backend_requests_running",
        "Requests that the backend reports to be working on.",
        lambda backend: backend.reported.requests_processing,
    ),
    (
        "backend_requests_waiting",
        "Requests that the backend reports in its own queue.",
        lambda backend: backend.reported.requests_waiting,
    ),
    ("backend_state_timestamp_seconds", "When the backend last reported.", lambda backend: backend.reported_at),
)

_LEARNED_COUNTERS: tuple[tuple[str, str, Callable[[BackendLearning], float]], ...] = (
    (
        "backend_prompt_tokens",
        "Prompt tokens of requests whose replies reported cached tokens.",
        lambda backend: backend.prompt_tokens,
    ),
    (
        "backend_prompt_tokens_predicted",
        "Prompt tokens of these requests that were expected in the backend's cache.",
        lambda backend: backend.predicted_tokens,
    ),
    (
        "backend_prompt_tokens_cached",
        "Prompt tokens of these requests that were in the backend's cache, as replies reported.",
        lambda backend: backend.cached_tokens,
    ),
)

_LEARNED_GAUGES: tuple[tuple[str, str, Callable[[BackendLearning], float | None]], ...] = (
    ("backend_prompts_reading", "Prompts that the backend has not read yet.", lambda backend: backend.prompts_reading),
    (
        "backend_read_tokens_per_second",
        "Prompt tokens that the backend reads in a second, as measured.",
        lambda backend: backend.reads_per_second,
    ),
    (
        "backend_seconds_per_token",
        "Seconds for a token of each answer, as measured, with as many answers as the backend writes now.",
        lambda backend: backend.seconds_per_token,
    ),
)

_KEPT: tuple[tuple[str, str, Callable[[BackendLearning], float | None]], ...] = (
    (
        "backend_kept_prompt_bytes",
        "Bytes of prompts that the backend's cache is estimated to keep.",
        lambda backend: backend.kept_prompt_bytes,
    ),
)


class _LearnedCollector:
    """The knowledge of learning policies; absent while no policy learns."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def collect(self) -> Iterable[Metric]:
        learned = self._placement.learned()
        if learned is None:
            return
        for name, text, count in _LEARNED_COUNTERS:
            counter = CounterMetricFamily(f"inference_proxy_{name}", text, labels=["backend"])
            for backend in learned.backends:
                counter.add_metric([backend.url], count(backend))
            yield counter
        yield from _gauges(_LEARNED_GAUGES, learned.backends)
        yield from _gauges(_KEPT, learned.backends)
        name = "inference_proxy_prefix_index"
        yield GaugeMetricFamily(f"{name}_bytes", "Memory of the prefix index.", learned.index_bytes)
        yield GaugeMetricFamily(f"{name}_runs", "Prompt prefixes in the prefix index.", learned.index_runs)


def _gauges(gauges: Iterable[tuple[str, str, Callable[[B], float | None]]], backends: Sequence[B]) -> Iterator[Metric]:
    for name, text, reading in gauges:
        family = GaugeMetricFamily(f"inference_proxy_{name}", text, labels=["backend"])
        for backend in backends:
            value = reading(backend)
            if value is not None:
                family.add_metric([backend.url], float(value))
        yield family


class _FleetCollector:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._fleet = dispatcher.fleet
        self._queue = dispatcher.queue
        self._conversations = dispatcher.placement.conversations

    def collect(self) -> Iterable[Metric]:
        backends = self._fleet.snapshot().backends
        yield from _gauges(_GAUGES, backends)
        yield _states(backends)
        yield from _models(backends)
        yield GaugeMetricFamily(
            "inference_proxy_queue_requests", "Requests that wait for a backend.", self._queue.count
        )
        refusals = CounterMetricFamily(
            "inference_proxy_queue_refusals", "Requests that the queue rejected.", labels=["reason"]
        )
        refusals.add_metric(["full"], self._queue.rejections)
        refusals.add_metric(["timeout"], self._queue.timeouts)
        yield refusals
        yield CounterMetricFamily(
            "inference_proxy_turns_kept_warm",
            "Turns of conversations that went to the backend of the previous turn, among equally loaded backends.",
            self._conversations.kept,
        )
        yield InfoMetricFamily("inference_proxy_build", "The running version.", {"version": __version__})


def _states(backends: Iterable[BackendSnapshot]) -> Metric:
    family = GaugeMetricFamily(
        "inference_proxy_backend_state", "1 for the current state of the backend.", labels=["backend", "state"]
    )
    for backend in backends:
        for state in Health:
            family.add_metric([backend.url, state.value], float(backend.state is state))
    return family


def _models(backends: Iterable[BackendSnapshot]) -> Iterator[Metric]:
    """The models of backends that load and unload them. Only models in memory have a series, so there are few."""
    requests = GaugeMetricFamily(
        "inference_proxy_backend_model_requests",
        "Requests for a model that the backend has in memory, as far as known.",
        labels=["backend", "model"],
    )
    loads = CounterMetricFamily(
        "inference_proxy_backend_model_loads", "Requests that made the backend load a model.", labels=["backend"]
    )
    for backend in backends:
        if backend.models is not None:
            loads.add_metric([backend.url], backend.model_loads)
            for name, model in backend.models.items():
                if model.in_memory:
                    requests.add_metric([backend.url, name], model.requests)
    yield from (family for family in (requests, loads) if family.samples)


class MetricsPage:
    """The page for Prometheus: of this process, or of all workers with a label ``worker``.

    Args:
        dispatcher: its fleet, its queue and its placement are shown.
        metrics: shown, too.
        siblings: the other workers; without any there is no label.
    """

    def __init__(self, dispatcher: Dispatcher, metrics: RequestMetrics, siblings: Siblings) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_FleetCollector(dispatcher))
        self._registry.register(_LearnedCollector(dispatcher.placement))
        if isinstance(dispatcher.placement, WatchedPlacement):
            self._registry.register(ShadowCollector(dispatcher.placement.shadow.counts))
        self._registry.register(metrics)
        ProcessCollector(registry=self._registry)
        self._siblings = siblings

    @property
    def answers(self) -> Answers:
        """The answers of this worker to queries of its siblings."""
        return {_METRICS: self._own}

    async def text(self) -> bytes:
        """The whole page."""
        if not self._siblings.others:
            return generate_latest(self._registry)
        others = await self._siblings.ask(_METRICS)
        up = GaugeMetricFamily("inference_proxy_worker_up", "1 if the worker reported its metrics.", labels=["worker"])
        for number, page in sorted({**others, self._siblings.number: b""}.items()):
            up.add_metric([str(number)], float(page is not None))
        pages = [self._own(), *(page for page in others.values() if page is not None), generate_latest(_Ready((up,)))]
        return _merged(pages)

    def _own(self) -> bytes:
        return generate_latest(_Ready(_labelled(self._registry.collect(), worker=str(self._siblings.number))))


class _Ready(Collector):
    """A collector of given families."""

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
            # A family consists of two lines of explanation, and its samples.
            head, kind, samples = block.split(b"\n", 2)
            families.setdefault(head, [kind + b"\n"]).append(samples)
    return b"".join(_FAMILY + head + b"\n" + b"".join(parts) for head, parts in families.items())


def prometheus_router(page: MetricsPage) -> APIRouter:
    """``GET /metrics``, which returns ``page``."""
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def expose() -> Response:
        return Response(await page.text(), media_type=CONTENT_TYPE_LATEST)

    return router
