"""Results as Markdown tables, and their insertion into a document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulation.trace import Trace

__all__ = ["Results", "document_with", "tables", "use_case_tables"]

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Figures by trace and policy, as read from JSON."""

_COLUMNS = {
    "p50": "p50", "p90": "p90", "p99": "p99", "mean": "mean", "whole_mean": "whole answer", "hit_rate": "hits",
    "busiest_share": "busiest", "most_in_engine": "queue: engine", "most_in_replica": "replica",
}  # fmt: skip

_NOTICED = ("p50", "p90", "p99", "wall", "hit_rate")

_TITLES = {figure: f"{figure} of the time to the first token, in seconds" for figure in ("p50", "p90", "p99")} | {
    "wall": "time from the start to the end of the last answer, in seconds; mean of the seeds",
    "hit_rate": "share of the prompt tokens that engines had cached",
}


def tables(results: Results, traces: Mapping[str, Trace]) -> str:
    """An overview for each important figure, and one table per trace."""
    lines = list[str]()
    for figure in ("p99", "p50"):
        lines += ["", *_overview(results, traces, figure)]
    lines = lines[1:]
    lines += _details(results, traces)
    return "\n".join(lines) + "\n"


def use_case_tables(results: Results, traces: Mapping[str, Trace]) -> str:
    """An overview for each figure that clients of a use case notice, and one table per trace."""
    lines = list[str]()
    for figure in _NOTICED:
        lines += [*_overview(results, traces, figure), ""]
    lines += _details(results, traces)[1:]
    return "\n".join(lines) + "\n"


def document_with(tables: str, document: Path, part: str = "results") -> str:
    """The text of ``document`` with ``tables`` between the markers of ``part``."""
    between = re.compile(rf"(<!-- {part}: begin -->\n).*?(<!-- {part}: end -->)", re.DOTALL)
    return between.sub(lambda found: f"{found[1]}\n{tables}\n{found[2]}", document.read_text())


def _details(results: Results, traces: Mapping[str, Trace]) -> list[str]:
    lines = ["", "<details><summary>All figures of each trace</summary>"]
    for name, by_policy in results.items():
        lines += ["", *_of_trace(name, traces[name], by_policy)]
    return [*lines, "", "</details>"]


def _overview(results: Results, traces: Mapping[str, Trace], figure: str) -> Iterator[str]:
    policies = list(next(iter(results.values())))
    yield (
        _TITLES[figure]
        + "; bold: the best"
        + r"; \*: prefixes are shared" * any(traces[name].shares_prefixes for name in results)
    )
    yield ""
    yield _row(["trace", *policies])
    yield "|---" + "|--:" * len(policies) + "|"
    for name, by_policy in results.items():
        values = [figures[figure] for figures in by_policy.values()]
        best = max(values) if figure == "hit_rate" else min(values)
        yield _row(
            [
                name + r" \*" * traces[name].shares_prefixes,
                *(f"**{_cell(figure, value)}**" if value == best else _cell(figure, value) for value in values),
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
