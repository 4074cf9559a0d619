"""Counts finished requests. They are plain numbers until Prometheus asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter

from inference_engine_proxy_server.telemetry.exposition import Labels, Sample, family, histogram_family
from inference_engine_proxy_server.telemetry.finished_requests import Batch, FinishedRequests
from inference_engine_proxy_server.telemetry.genai import genai_families
from inference_engine_proxy_server.telemetry.histogram import Histogram
from inference_engine_proxy_server.telemetry.request_record import RequestRecord, grouped
from inference_engine_proxy_server.telemetry.routes import PATHS, route_of
from inference_engine_proxy_server.telemetry.traffic import TokenSums, Totals, Traffic

__all__ = ["ModelOf", "RequestCounts"]

ModelOf = Callable[[str | None, str | None], str]
"""The label for the model of a request, from the backend that it used and the model that it names."""

_MOST_MODELS = 1000
_OTHER_MODEL = "other"
_REMEMBERED = 4096  # kinds of requests whose counter is found at once
_LONGEST_MODEL = 100  # characters of a name that is remembered

_HISTOGRAMS: tuple[tuple[str, str, Callable[[Traffic], Histogram]], ...] = (
    ("request_duration", "From the complete request to the end of the reply.", lambda traffic: traffic.seconds),
    (
        "time_to_first_token",
        "From the complete request to the first event of a stream.",
        lambda traffic: traffic.first_tokens,
    ),
    (
        "inter_token_latency",
        "Average time between two tokens of a stream: one observation for each stream, at its end.",
        lambda traffic: traffic.inter_tokens,
    ),
    ("queue_wait", "Time in the proxy's queue; 0 for requests that did not wait.", lambda traffic: traffic.queue_waits),
)
_TOKENS: tuple[tuple[str, str, Callable[[TokenSums], int]], ...] = (
    ("prompt", "Tokens of prompts, as engines reported them.", lambda tokens: tokens.prompt),
    ("cached", "Tokens of prompts that were in the cache of the engine, as reported.", lambda tokens: tokens.cached),
    ("output", "Tokens of answers, as engines reported them.", lambda tokens: tokens.output),
)

_key_of = attrgetter("path", "model", "backend", "status")


class _Counter:
    """Requests with the same labels.

    Attributes:
        labels: as :class:`~.exposition.Labels` formats them.
    """

    __slots__ = ("count", "labels", "traffic")

    def __init__(self, labels: str, traffic: Traffic) -> None:
        self.count = 0
        self.labels = labels
        self.traffic = traffic


class RequestCounts:
    """The counts of all finished requests.

    Args:
        finished: the requests.
        labels: formats labels.
        model_of: labels of models.
    """

    def __init__(self, finished: FinishedRequests, labels: Labels, model_of: ModelOf) -> None:
        self._finished = finished
        self._labels = labels
        self._model_of = model_of
        self._totals = Totals()
        self._counters: dict[tuple[str, str, str, int], _Counter] = {}  # by route, model, backend and status
        self._traffic: dict[tuple[str, str], Traffic] = {}  # by route and model
        self._labels_of_tokens: dict[tuple[str, str], str] = {}  # by model and backend
        self._models: set[str] = set()  # labels so far
        self._remembered: dict[tuple[str, str | None, str | None, int], _Counter] = {}  # by what records say
        finished.subscribe(self._count)

    def families(self) -> Iterator[str]:
        """All families; requests that end meanwhile may be counted in some of them only."""
        self._finished.hand_over()
        self._remembered.clear()  # a model may have got another label since the last time
        traffic = list(self._traffic.values())
        yield from family(
            "inference_proxy_requests_total",
            "counter",
            "Finished requests.",
            ((one.labels, one.count) for one in list(self._counters.values())),
        )
        for name, text, pick in _HISTOGRAMS:
            histograms = ((self._labels.of(route=one.route, model=one.model), pick(one)) for one in traffic)
            yield from histogram_family(f"inference_proxy_{name}_seconds", text, histograms)
        tokens = [(self._token_labels(*place), sums) for place, sums in list(self._totals.tokens.items())]
        yield ""
        for name, text, count in _TOKENS:
            samples = ((labels, count(sums)) for labels, sums in tokens)
            yield from family(f"inference_proxy_{name}_tokens_total", "counter", text, samples)
        yield from self._totals_families()
        yield from genai_families(traffic, self._labels)

    def _totals_families(self) -> Iterator[str]:
        totals = self._totals
        decisions = {policy: count for policy, count in totals.decisions.items() if policy is not None}
        for name, text, label, counts in (
            ("stream_aborts", "Replies that began and were not finished.", "side", totals.aborts),
            ("request_failures", "Requests that did not end with a reply below 400.", "reason", totals.failures),
            ("decisions", "Requests by the policy that chose their backend.", "policy", decisions),
        ):
            samples: list[Sample] = [(self._labels.of(**{label: value}), count) for value, count in counts.items()]
            yield from family(f"inference_proxy_{name}_total", "counter", text, samples)

    def _count(self, batch: Batch) -> None:
        by_traffic: dict[Traffic, list[RequestRecord]] = {}
        for key, records in grouped(batch.records, _key_of).items():
            counter = self._remembered.get(key) or self._find(*key)
            counter.count += len(records)
            by_traffic.setdefault(counter.traffic, []).extend(records)
        for traffic, records in by_traffic.items():
            traffic.add(records)

    def _token_labels(self, model: str, backend: str) -> str:
        place = (model, backend)
        labels = self._labels_of_tokens.get(place)
        if labels is None:
            labels = self._labels_of_tokens[place] = self._labels.of(model=model, backend=backend)
        return labels

    def _find(self, path: str, model: str | None, backend: str | None, status: int) -> _Counter:
        """The counter of the requests with this path, model, backend and status."""
        name = self._label(self._model_of(backend, model))
        place = (route_of(path), name, backend or "", status)
        counter = self._counters.get(place) or self._add(*place)
        if path in PATHS and (model is None or len(model) <= _LONGEST_MODEL):
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[path, model, backend, status] = counter
        return counter

    def _label(self, model: str) -> str:
        if model not in self._models:
            if len(self._models) >= _MOST_MODELS:
                return _OTHER_MODEL
            self._models.add(model)
        return model

    def _add(self, route: str, model: str, backend: str, status: int) -> _Counter:
        traffic = self._traffic.get((route, model))
        if traffic is None:
            traffic = self._traffic[route, model] = Traffic(route, model, self._totals)
        labels = self._labels.of(route=route, model=model, backend=backend, code=str(status))
        counter = self._counters[route, model, backend, status] = _Counter(labels, traffic)
        return counter
