"""Figures extracted from the reports: medians over all rounds, and ratios within one round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from load.generator import Report
from suite.results import Results
from suite.search import delivered
from suite.targets import DIRECT, OURS_NAME

__all__ = ["FIGURES", "Figure", "Figures", "Spread"]

_MANY_STREAMS = 1_000


@dataclass(frozen=True, slots=True)
class Figure:
    """A number extracted from a step's report.

    Attributes:
        value: extracts the number; ``None`` if the report lacks it.
        is_added: subtract the figure of the engine alone, from the same round.
    """

    name: str
    title: str
    step: str
    value: Callable[[Report], float | None]
    is_added: bool = False


def _cpu_per(unit: str) -> Callable[[Report], float | None]:
    return lambda report: sum(report["cpu_us"]) / report[unit] if report["cpu_us"] and report[unit] else None


def _requests_per_second(report: Report) -> float:
    return float(report["requests"] / report["seconds"])


def _requests_per_core(report: Report) -> float | None:
    """Requests per second that the proxy's busiest process would serve with a full core."""
    return report["requests"] * 1e6 / max(report["cpu_us"]) if report["cpu_us"] else None


def _delivered_percent(report: Report) -> float | None:
    return 100 * delivered(report) if report["connections"] == _MANY_STREAMS else None


def _of_many(name: str, divisor: float) -> Callable[[Report], float | None]:
    """``None`` unless all streams are open: with fewer streams, a slow target would look good."""
    return lambda report: report[name] / divisor if report["streaming"] == _MANY_STREAMS else None


def _kilobytes_per_stream(report: Report) -> float:
    return float((report["memory_bytes"] - report["idle_memory_bytes"]) / report["connections"] / 1e3)


def _latencies(step: str, title: str, prefix: str = "") -> tuple[Figure, Figure]:
    def quantile(name: str) -> Figure:
        return Figure(
            f"{step}-{name}", f"{title}, {name} (µs)", step, lambda report: report[f"{prefix}{name}_us"], True
        )

    return quantile("p50"), quantile("p99")


_CPU = (
    Figure("cpu-1kb", "CPU per request, 1 KB (µs)", "requests-1kb", _cpu_per("requests")),
    Figure("cpu-20kb", "CPU per request, 20 KB (µs)", "requests-20kb", _cpu_per("requests")),
    Figure("cpu-1mb", "CPU per request, 1 MB (µs)", "requests-1mb", _cpu_per("requests")),
    Figure("cpu-event", "CPU per event, 256 streams (µs)", "events-256", _cpu_per("events")),
)
_THROUGHPUT = (
    Figure("requests-per-second", "requests/s measured", "requests-1kb", _requests_per_second),
    Figure("requests-per-core", "requests/s of one full core", "requests-1kb", _requests_per_core),
)
_LATENCY = (
    *_latencies("latency-1", "added latency, 1 connection"),
    *_latencies("requests-1kb", "64 connections"),
    *_latencies("latency-512", "512 connections"),
    *_latencies("first-event-64", "first event, 64 streams", "first_"),
)
_STREAMS = (
    Figure("most-streams", "most streams at 50 tokens/s", "most-streams", lambda report: report["most"]),
    Figure("delivered-1000", "events in time, 1,000 streams (%)", "streams-1000", _delivered_percent),
    Figure("lag-1000", "delay of events, 1,000 streams, p99 (ms)", "streams-1000", _of_many("p99_us", 1e3)),
    Figure("memory-idle", "memory, idle (MB)", "streams-1000", lambda report: report["idle_memory_bytes"] / 1e6),
    Figure("memory-1000", "memory, 1,000 streams (MB)", "streams-1000", _of_many("memory_bytes", 1e6)),
    Figure("memory-stream", "memory per mostly idle stream (KB)", "idle-streams", _kilobytes_per_stream),
)
_FLEETS = tuple(
    Figure(step, f"{title} (µs)", step, _cpu_per("requests"))
    for step, title in (
        ("fleet-2", "2 backends"),
        ("fleet-32", "32 backends"),
        ("fleet-256", "256 backends"),
        ("models-50", "2 backends, 50 models"),
    )
)
_WORKERS = tuple(
    figure
    for number, step in ((1, "workers-1"), (2, "workers-2"))
    for figure in (
        Figure(f"{step}-measured", f"requests/s measured, {number} process(es)", step, _requests_per_second),
        Figure(f"{step}-capacity", f"requests/s of {number} full core(s)", step, _requests_per_core),
        Figure(f"{step}-cpu", f"CPU per request, {number} process(es) (µs)", step, _cpu_per("requests")),
    )
)
FIGURES = {figure.name: figure for figure in (*_CPU, *_THROUGHPUT, *_LATENCY, *_STREAMS, *_FLEETS, *_WORKERS)}


@dataclass(frozen=True, slots=True)
class Spread:
    """Values from several rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        digits = ".2f" if self.median >= 0.1 else ".2g"
        low, middle, high = (f"{value:{digits}}" for value in (min(self.values), self.median, max(self.values)))
        return middle if len(self.values) == 1 else f"{middle} ({low}-{high})"


class Figures:
    """All figures of a run. Only figures of the same round are compared: a machine's speed changes within minutes."""

    def __init__(self, results: Results) -> None:
        self._results = results

    @property
    def targets(self) -> list[str]:
        """Targets with at least one report, in the order of their first one."""
        return list(dict.fromkeys(name for targets in self._results.reports.values() for name in targets))

    def rounds(self, name: str, target: str) -> list[float | None]:
        """The figure in each round; ``None`` where it is missing."""
        figure = FIGURES[name]
        values = self._values(figure, target)
        if not figure.is_added or target == DIRECT:
            return values
        alone = self._values(figure, DIRECT)
        return [None if a is None or b is None else a - b for a, b in zip(values, alone, strict=True)]

    def median(self, name: str, target: str) -> float | None:
        known = [value for value in self.rounds(name, target) if value is not None]
        return median(known) if known else None

    def ratio(self, name: str, peer: str) -> Spread | None:
        """This proxy's figure as a multiple of the peer's."""
        return _quotients(self.rounds(name, OURS_NAME), self.rounds(name, peer))

    def growth(self, name: str, base: str, target: str = OURS_NAME) -> Spread | None:
        """One figure of a target as a multiple of another figure of the same target."""
        return _quotients(self.rounds(name, target), self.rounds(base, target))

    def as_json(self) -> dict[str, Any]:
        return {name: {"title": figure.title, "targets": self._targets(name)} for name, figure in FIGURES.items()}

    def _targets(self, name: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for target in self.targets:
            middle = self.median(name, target)
            if middle is None:
                continue
            ratio = None if target == OURS_NAME else self.ratio(name, target)
            found[target] = {"median": middle, "rounds": self.rounds(name, target)}
            if ratio is not None:
                found[target] |= {"ours_divided_by_it": ratio.median, "in_each_round": ratio.values}
        return found

    def _values(self, figure: Figure, target: str) -> list[float | None]:
        reports = self._results.reports.get(figure.step, {}).get(target, [None] * self._results.rounds)
        return [None if report is None else figure.value(report) for report in reports]


def _quotients(dividends: list[float | None], divisors: list[float | None]) -> Spread | None:
    pairs = zip(dividends, divisors, strict=True)
    values = tuple(above / below for above, below in pairs if above is not None and below)
    return Spread(values) if values else None
