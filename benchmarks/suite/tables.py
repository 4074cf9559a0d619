"""The figures as Markdown tables: one table per question, one row per target."""

from __future__ import annotations

import re
from collections.abc import Iterable

from suite.claims import CLAIMS
from suite.figures import FIGURES, Figures, Spread
from suite.results import Failure
from suite.targets import DIRECT, OURS_NAME

__all__ = [
    "claims_table",
    "failures_list",
    "figures_table",
    "fleet_table",
    "markdown_table",
    "ratios_table",
    "result_tables",
    "spread_cell",
]

_UNKNOWN = "-"
_CPU = ("cpu-1kb", "cpu-20kb", "cpu-1mb", "cpu-event", "requests-per-second", "requests-per-core")
_COMPARED = ("cpu-1kb", "cpu-20kb", "cpu-1mb", "cpu-event", "latency-1-p50", "latency-1-p99", "memory-1000")
_LATENCY = tuple(
    f"{step}-{p}" for step in ("latency-1", "requests-1kb", "latency-512", "first-event-64") for p in ("p50", "p99")
)
_STREAMS = ("most-streams", "delivered-1000", "lag-1000", "memory-idle", "memory-1000", "memory-stream")
_FLEET = ("fleet-2", "fleet-32", "fleet-256", "models-50")


def result_tables(figures: Figures) -> str:
    """All tables that have figures, each with a heading."""
    tables = [
        ("CPU time and throughput of one core", figures_table(figures, _CPU)),
        ("This proxy / other proxy: median (lowest-highest) of the rounds", ratios_table(figures, _COMPARED)),
        ("Added latency; last row: latency of the engine without a proxy", figures_table(figures, _LATENCY)),
        ("Streams and memory", figures_table(figures, _STREAMS)),
        ("CPU per request behind fleets of different sizes", fleet_table(figures)),
        ("Processes", _workers_table(figures)),
    ]
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in tables if table)


def figures_table(figures: Figures, names: Iterable[str]) -> str:
    """Medians; empty if there are none."""
    columns = [name for name in names if any(figures.median(name, target) is not None for target in figures.targets)]
    rows = [
        [target, *(_number(figures.median(name, target)) for name in columns)]
        for target in figures.targets
        if any(figures.median(name, target) is not None for name in columns)
    ]
    return markdown_table(["", *(FIGURES[name].title for name in columns)], rows)


def ratios_table(figures: Figures, names: Iterable[str]) -> str:
    columns = [name for name in names if figures.median(name, OURS_NAME) is not None]
    peers = [name for name in figures.targets if name not in (OURS_NAME, DIRECT)]
    rows = [
        [f"this proxy / {peer}", *(str(figures.ratio(name, peer) or _UNKNOWN) for name in columns)] for peer in peers
    ]
    return (
        markdown_table(["", *(re.sub(r" \(.*?\)", "", FIGURES[name].title) for name in columns)], rows)
        if columns
        else ""
    )


def fleet_table(figures: Figures) -> str:
    rows = [
        [target, *(_number(figures.median(name, target)) for name in _FLEET), str(growth)]
        for target in figures.targets
        if (growth := figures.growth("fleet-256", "fleet-2", target)) is not None
    ]
    return markdown_table(["", *(FIGURES[name].title for name in _FLEET), "256 / 2 backends"], rows)


def claims_table(figures: Figures, *, only_measured: bool = False) -> str:
    verdicts = {True: "holds", False: "**does not hold**", None: "not measured"}
    rows = [
        [claim.text, claim.bound, _number(claim.figure(figures)), verdicts[claim.holds(figures)]]
        for claim in CLAIMS
        if not only_measured or claim.holds(figures) is not None
    ]
    return markdown_table(["claim", "limit", "figure", ""], rows)


def failures_list(failures: Iterable[Failure]) -> str:
    return "\n".join(
        f"* round {failure.round + 1}, {failure.step}, {failure.target}: {' '.join(failure.error.split())[-200:]}"
        for failure in failures
    )


def _workers_table(figures: Figures) -> str:
    rows = [
        [
            f"{number} process(es) on {number} core(s)",
            *(_number(figures.median(f"workers-{number}-{kind}", OURS_NAME)) for kind in kinds),
        ]
        for number in (1, 2)
        for kinds in [("cpu", "capacity", "measured")]
        if figures.median(f"workers-{number}-cpu", OURS_NAME) is not None
    ]
    return markdown_table(["", "CPU per request (µs)", "requests/s of full cores", "requests/s measured"], rows)


def _number(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread_cell(spread: Spread | None, form: str) -> str:
    """The median, with the range if it differs when printed; ``form`` formats a number."""
    if spread is None:
        return _UNKNOWN
    low, middle, high = (form.format(value) for value in (min(spread.values), spread.median, max(spread.values)))
    return middle if low == high else f"{middle} ({low}-{high})"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; empty without rows."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""
