"""Counters and histograms of requests. They are plain integers until Prometheus scrapes them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["RequestMetrics", "route_of"]

# Seconds, doubling: the OpenTelemetry GenAI conventions' buckets, continued to cover slow local models.
_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68)

# Exposed as 0 from the start.
_RESUME_CAUSES = ("backend_disconnected", "backend_timeout", "invalid_backend_reply", "request_moved")
_SHED_REASONS = ("connections", "event_loop", "memory", "request_bytes", "requests")

_ROUTES = {
    "/v1/chat/completions": "chat_completions",
    "/chat/completions": "chat_completions",
    "/v1/completions": "completions",
    "/completions": "completions",
    "/completion": "completions",
    "/v1/embeddings": "embeddings",
    "/embeddings": "embeddings",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
    "/v1/rerank": "rerank",
    "/v1/audio/transcriptions": "transcriptions",
    "/v1/models": "models",
    "/v1/realtime": "realtime",
}


def route_of(path: str) -> str:
    """The route of ``path``, one of a small fixed set, so that it can be a label."""
    return _ROUTES.get(path, "other")


class _Histogram:
    """A histogram of seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def cumulative(self) -> Iterator[tuple[str, float]]:
        below = 0
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), self.counts, strict=True):
            below += count
            yield bound, below


class _RouteMetrics:
    """The requests of one route: counts by backend and status, and two histograms."""

    __slots__ = ("durations", "first_bytes", "requests")

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.durations = _Histogram()
        self.first_bytes = _Histogram()


class RequestMetrics:
    """Counts requests; a collector for prometheus_client's registries.

    Args:
        resume_rules: the rules that exclude broken streams from being resumed.
    """

    def __init__(self, resume_rules: Iterable[str] = ()) -> None:
        self._routes: dict[str, _RouteMetrics] = {}
        self._by_path: dict[str, _RouteMetrics] = {}  # the same, for the paths that have a route of their own
        self._aborts: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._fallbacks: Counter[tuple[str, str, str]] = Counter()
        self._resumes = Counter(dict.fromkeys(_RESUME_CAUSES, 0))
        self._unresumed = Counter(dict.fromkeys(resume_rules, 0))
        self._shed = Counter(dict.fromkeys(_SHED_REASONS, 0))
        self._reloads = Counter(success=0, failure=0)
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []

    def count_request(self, record: RequestRecord) -> None:
        """Count a finished request."""
        # Every request passes here, so the histograms are updated inline.
        route = self._by_path.get(record.path) or self._route(record.path)
        route.requests[record.backend or "", record.status] += 1
        seconds = record.seconds
        histogram = route.durations
        histogram.counts[bisect_left(_BUCKETS, seconds)] += 1
        histogram.total += seconds
        first_byte_seconds = record.first_byte_seconds
        if first_byte_seconds is not None:
            histogram = route.first_bytes
            histogram.counts[bisect_left(_BUCKETS, first_byte_seconds)] += 1
            histogram.total += first_byte_seconds
            if record.outcome is not Outcome.COMPLETE:
                self._aborts["client" if record.outcome is Outcome.CLIENT_LEFT else "backend"] += 1

    def _route(self, path: str) -> _RouteMetrics:
        name = route_of(path)
        route = self._routes.get(name)
        if route is None:
            route = self._routes[name] = _RouteMetrics()
        if path in _ROUTES:
            self._by_path[path] = route
        return route

    def count_retry(self, reason: str) -> None:
        """Count a request that is sent again; ``reason``: the code of the error that made it so."""
        self._retries[reason] += 1

    def count_fallback(self, model: str, fallback: str, reason: str) -> None:
        """Count a request that another model gets; names as in the fleet file, ``reason``: why."""
        self._fallbacks[model, fallback, reason] += 1

    def count_resume(self, cause: str) -> None:
        """Count a stream that is continued on another backend; ``cause``: the code of the error that broke it."""
        self._resumes[cause] += 1

    def count_unresumed(self, rule: str) -> None:
        """Count a broken stream that is not resumed; ``rule``: the rule that excludes it."""
        self._unresumed[rule] += 1

    def count_shed(self, reason: str) -> None:
        """Count a request, or a connection, that was rejected because a limit was reached; ``reason``: which limit."""
        self._shed[reason] += 1

    def count_reload(self, *, succeeded: bool) -> None:
        """Count one reading of changed settings, and whether they could be used."""
        self._reloads["success" if succeeded else "failure"] += 1

    def add_gauge(self, name: str, text: str, reading: Callable[[], float]) -> None:
        """Show what ``reading`` gives at each scrape."""
        self._gauges.append((f"inference_proxy_{name}", text, reading))

    def collect(self) -> Iterable[Metric]:
        """The families, for a scrape."""
        requests = CounterMetricFamily(
            "inference_proxy_requests", "Finished requests.", labels=["route", "backend", "code"]
        )
        for name, route in self._routes.items():
            for (backend, status), count in route.requests.items():
                requests.add_metric([name, backend, str(status)], count)
        yield requests
        yield _counter(
            "inference_proxy_stream_aborts", "Replies that began and were not finished.", "side", self._aborts
        )
        yield _counter("inference_proxy_retries", "Requests repeated after a failure.", "reason", self._retries)
        fallbacks = CounterMetricFamily(
            "inference_proxy_fallbacks",
            "Requests that another model got, because theirs could not serve them.",
            labels=["model", "fallback", "reason"],
        )
        for labels, count in self._fallbacks.items():
            fallbacks.add_metric(labels, count)
        yield fallbacks
        yield _counter(
            "inference_proxy_stream_resumes", "Broken streams continued on another backend.", "cause", self._resumes
        )
        yield _counter(
            "inference_proxy_stream_resume_refusals", "Broken streams that were not resumed.", "rule", self._unresumed
        )
        yield _counter(
            "inference_proxy_shed",
            "Requests and connections rejected because a limit was reached.",
            "reason",
            self._shed,
        )
        yield _counter("inference_proxy_config_reloads", "Reloads of changed settings.", "result", self._reloads)
        for name, text, reading in self._gauges:
            yield GaugeMetricFamily(name, text, value=reading())
        yield _histograms(
            "inference_proxy_request_duration_seconds",
            "From the complete request to the end of the reply.",
            {name: route.durations for name, route in self._routes.items()},
        )
        yield _histograms(
            "inference_proxy_time_to_first_byte_seconds",
            "From the complete request to the first byte of the reply; of a stream, to its first event.",
            {name: route.first_bytes for name, route in self._routes.items()},
        )


def _counter(name: str, text: str, label: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _histograms(name: str, text: str, histograms: dict[str, _Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["route"])
    for route, histogram in histograms.items():
        family.add_metric([route], list(histogram.cumulative()), histogram.total)
    return family
