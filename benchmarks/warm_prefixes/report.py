"""Results as Markdown tables: one table per workload, one row per target."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from suite.results import Results
from suite.tables import failures_list, markdown_table, spread_cell
from warm_prefixes.figures import spread_of
from warm_prefixes.plan import WORKLOADS

__all__ = ["tables"]

_PERCENT, _SECONDS, _COUNT = "{:.0%}", "{:.2f}", "{:.0f}"
_COLUMNS = {
    "hit_rate": ("hit rate", _PERCENT),
    "wall_seconds": ("whole run (s)", _SECONDS),
    "first_p50": ("first token p50 (s)", _SECONDS),
    "first_p90": ("p90", _SECONDS),
    "first_p99": ("p99", _SECONDS),
    "failures": ("failed attempts", _COUNT),
    "busiest_share": ("busiest engine", _PERCENT),
}


def tables(results: Results) -> str:
    parts = [part for name in results.reports for part in _of_workload(results, name)]
    parts.append(_conditions(results))
    if results.failures:
        parts += ["Without a figure:", failures_list(results.failures)]
    return "\n\n".join(parts)


def _of_workload(results: Results, name: str) -> Iterator[str]:
    by_target = results.reports[name]
    ceilings = [run["ceiling"] for runs in by_target.values() for run in runs if run is not None]
    requests = max(run["requests"] for runs in by_target.values() for run in runs if run is not None)
    yield (
        f"**{name}**: {WORKLOADS[name].about}. {requests} requests; "
        f"one boundless cache would have {_PERCENT.format(median(ceilings))}."
    )
    rows = [
        [target, *(spread_cell(spread_of(runs, figure), form) for figure, (_, form) in _COLUMNS.items())]
        for target, runs in by_target.items()
    ]
    yield markdown_table(["", *(title for title, _ in _COLUMNS.values())], rows)


def _conditions(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['date']}, commit {about['commit']}; medians (lowest-highest) of {results.rounds} run(s); "
        f"{about['cores']} cores ({about['processor']}); alone on an idle engine, the same prompt took "
        f"{about['cold_seconds']:.2f} s to its first token cold, and {about['warm_seconds']:.2f} s warm; {versions}."
    )
