"""Results as Markdown tables, and their insertion into a document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulation.trace import Trace

__all__ = ["Results", "document_with", "tables"]

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Figures by trace and policy, as read from JSON."""

_COLUMNS = {
    "p50": "p50", "p90": "p90", "p99": "p99", "mean": "mean", "whole_mean": "whole answer", "hit_rate": "hits",
    "busiest_share": "busiest", "most_in_engine": "queue: engine", "most_in_replica": "replica",
}  # fmt: skip


def tables(results: Results, traces: Mapping[str, Trace]) -> str:
    """Two overviews, and one table per trace."""
    lines = [*_overview(results, traces, "p99"), "", *_overview(results, traces, "p50")]
    lines += ["", "<details><summary>All figures of each trace</summary>"]
    for name, by_policy in results.items():
        lines += ["", *_of_trace(name, traces[name], by_policy)]
    lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def document_with(tables: str, document: Path, part: str = "results") -> str:
    """The text of ``document`` with ``tables`` between the markers of ``part``."""
    between = re.compile(rf"(<!-- {part}: begin -->\n).*?(<!-- {part}: end -->)", re.DOTALL)
    return between.sub(lambda found: f"{found[1]}\n{tables}\n{found[2]}", document.read_text())


def _overview(results: Results, traces: Mapping[str, Trace], figure: str) -> Iterator[str]:
    policies = list(next(iter(results.values())))
    yield f"{figure} of the time to the first token, in seconds; bold: the best; \\*: prefixes are shared"
    yield ""
    yield _row(["trace", *policies])
    yield "|---" + "|--:" * len(policies) + "|"
    for name, by_policy in results.items():
        best = min(figures[figure] for figures in by_policy.values())
        values = [figures[figure] for figures in by_policy.values()]
        yield _row(
            [
                name + r" \*" * traces[name].shares_prefixes,
                *(f"**{_seconds(value)}**" if value == best else _seconds(value) for value in values),
            ]
        )


def _of_trace(name: str, trace: Trace, by_policy: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    replicas = "one replica" if trace.replicas == 1 else f"{trace.replicas} replicas"
    most = max(figures["requests"] for figures in by_policy.values())
    size = f"{trace.backends} backends, {replicas}, {len(trace.seeds)} seeds, up to {most} requests"
    yield f"**{name}**: {trace.about}. {size}."
    yield ""
    yield _row(["policy", *_COLUMNS.values()])
    yield "|---" + "|--:" * len(_COLUMNS) + "|"
    for policy, figures in by_policy.items():
        yield _row([policy, *(_cell(column, figures[column]) for column in _COLUMNS)])


def _cell(column: str, value: float) -> str:
    if column == "hit_rate":
        return f"{value:.0%}"
    return f"{value:.2f}" if column == "busiest_share" else _seconds(value)


def _seconds(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
