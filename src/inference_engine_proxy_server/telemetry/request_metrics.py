"""Counters of what happens to requests, and gauges. They are plain numbers until Prometheus asks for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from inference_engine_proxy_server.telemetry.exposition import Labels, family
from inference_engine_proxy_server.telemetry.finished_requests import FinishedRequests
from inference_engine_proxy_server.telemetry.request_counts import ModelOf, RequestCounts

__all__ = ["RequestMetrics"]

# Exposed as 0 from the start.
_RESUME_CAUSES = ("backend_disconnected", "backend_timeout", "invalid_backend_reply", "request_moved")
_SHED_REASONS = ("connections", "event_loop", "memory", "request_bytes", "requests")


def _unnamed(_backend: str | None, _model: str | None) -> str:
    return ""


class RequestMetrics:
    """Counts requests and what happens to them.

    Args:
        resume_rules: the rules that exclude broken streams from being resumed.
        assembly_results: what may come of a reply that is assembled from a stream.
        labels: formats labels.
        model_of: labels of models; without it, models have none.
        finished: requests that have ended; without it, only what happens to requests is counted.
    """

    def __init__(
        self,
        resume_rules: Iterable[str] = (),
        assembly_results: Iterable[str] = (),
        labels: Labels | None = None,
        model_of: ModelOf = _unnamed,
        finished: FinishedRequests | None = None,
    ) -> None:
        self._labels = labels or Labels()
        self._requests = RequestCounts(finished or FinishedRequests(), self._labels, model_of)
        self._retries: Counter[str] = Counter()
        self._fallbacks: Counter[tuple[str, str, str]] = Counter()
        self._resumes = Counter(dict.fromkeys(_RESUME_CAUSES, 0))
        self._unresumed = Counter(dict.fromkeys(resume_rules, 0))
        self._assemblies = Counter(dict.fromkeys(assembly_results, 0))
        self._shed = Counter(dict.fromkeys(_SHED_REASONS, 0))
        self._reloads = Counter(success=0, failure=0)
        self._readings: list[tuple[str, str, str, Callable[[], float]]] = []

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

    def count_assembly(self, result: str) -> None:
        """Count a completion that was sent as a stream without being asked for one; ``result``: what came of it."""
        self._assemblies[result] += 1

    def count_shed(self, reason: str) -> None:
        """Count a request, or a connection, that was rejected because a limit was reached; ``reason``: which limit."""
        self._shed[reason] += 1

    def count_reload(self, *, succeeded: bool) -> None:
        """Count one reading of changed settings, and whether they could be used."""
        self._reloads["success" if succeeded else "failure"] += 1

    def add_gauge(self, name: str, text: str, reading: Callable[[], float]) -> None:
        """Show what ``reading`` gives at each scrape."""
        self._readings.append((f"inference_proxy_{name}", "gauge", text, reading))

    def add_counter(self, name: str, text: str, reading: Callable[[], float]) -> None:
        """Show what ``reading``, which never falls, gives at each scrape."""
        self._readings.append((f"inference_proxy_{name}_total", "counter", text, reading))

    def families(self) -> Iterator[str]:
        """All families, see :data:`~.exposition.Families`."""
        yield from self._requests.families()
        of = self._labels.of
        for name, text, label, counts in self._counters():
            samples = [(of(**{label: value}), count) for value, count in counts.items()]
            yield from family(f"inference_proxy_{name}_total", "counter", text, samples)
        yield from family(
            "inference_proxy_fallbacks_total",
            "counter",
            "Requests that another model got, because theirs could not serve them.",
            [(of(model=a, fallback=b, reason=c), count) for (a, b, c), count in self._fallbacks.items()],
        )
        for name, kind, text, reading in self._readings:
            yield from family(name, kind, text, [(of(), reading())])

    def _counters(self) -> Iterable[tuple[str, str, str, Counter[str]]]:
        """Counters with one label: name, meaning, label, and values."""
        return (
            ("retries", "Requests repeated after a failure.", "reason", self._retries),
            ("stream_resumes", "Broken streams continued on another backend.", "cause", self._resumes),
            ("stream_resume_refusals", "Broken streams that were not resumed.", "rule", self._unresumed),
            (
                "assembled_replies",
                "Completions that were sent as streams to assemble their replies.",
                "result",
                self._assemblies,
            ),
            ("shed", "Requests and connections rejected because a limit was reached.", "reason", self._shed),
            ("config_reloads", "Reloads of changed settings.", "result", self._reloads),
        )
