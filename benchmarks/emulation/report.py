"""Results as Markdown tables, one per trace and fleet, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

from simulation.plot import svg
from simulation.trace import Trace
from suite.results import Results
from suite.tables import failures_list, markdown_table, spread_cell
from warm_prefixes.figures import spread_of

__all__ = ["COLUMNS", "picture", "tables"]

_LATE_MS = 5.0  # more would show in the times to first tokens
_PERCENT, _SECONDS, _COUNT = "{:.1%}", "{:.3f}", "{:,.0f}"
COLUMNS = {
    "hit_rate": ("hit rate", _PERCENT),
    "read_tokens": ("prompt tokens read", _COUNT),
    "first_p50": ("first token p50 (s)", _SECONDS),
    "first_p90": ("p90", _SECONDS),
    "first_p99": ("p99", _SECONDS),
    "wall_seconds": ("whole run (s)", "{:.1f}"),
    "proxy_cpu_seconds": ("proxy CPU (s)", "{:.2f}"),
    "proxy_cpu_ms": ("per request (ms)", "{:.2f}"),
    "busiest_share": ("busiest engine", "{:.2f}"),
    "failed_attempts": ("failed attempts", _COUNT),
    "unanswered": ("unanswered", _COUNT),
}


def tables(results: Results, traces: Mapping[str, Trace]) -> str:
    """The tables, the conditions, and everything that failed."""
    parts = [part for name in results.reports for part in _of_case(results, name, traces)]
    parts.append(_conditions(results))
    if results.failures:
        parts += ["Without a figure:", failures_list(results.failures)]
    return "\n\n".join(parts)


def picture(results: Results) -> str:
    """p90 of the time to the first token relative to the best proxy of each case; empty if nothing has figures."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, by_target in results.reports.items():
        spreads = {target: spread_of(runs, "first_p90") for target, runs in by_target.items()}
        known = {target: {"p90": spread.median} for target, spread in spreads.items() if spread is not None}
        if known:
            rows[name] = known
    return svg(rows, "p90") if rows else ""


def _of_case(results: Results, name: str, traces: Mapping[str, Trace]) -> Iterator[str]:
    by_target = results.reports[name]
    runs = [run for reports in by_target.values() for run in reports if run is not None]
    trace = traces.get(name.partition(" on ")[0])  # gone, if the file is older than the catalogue
    about = "a trace that is no longer in the catalogue" if trace is None else trace.about
    yield f"**{name} engines**: {about}. About {median(run['requests'] for run in runs):.0f} requests in each run."
    rows = [
        [target, *(spread_cell(spread_of(reports, figure), form) for figure, (_, form) in COLUMNS.items())]
        for target, reports in by_target.items()
    ]
    yield markdown_table(["", *(title for title, _ in COLUMNS.values())], rows)
    kinds = {
        target: {kind for run in reports if run is not None for kind in run["failure_kinds"]}
        for target, reports in by_target.items()
    }
    if any(kinds.values()):
        named = (f"{target}: {', '.join(sorted(found))}" for target, found in kinds.items() if found)
        yield f"Failed attempts: {'; '.join(named)}."


def _conditions(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = (
        f"{about['date']}, commit {about['commit']}; medians (lowest-highest) of {results.rounds} seed(s), up to "
        f"{about['seconds']:.0f} s each; {about['cores']} cores ({about['processor']}); {versions}."
    )
    runs = [run for by in results.reports.values() for reports in by.values() for run in reports if run is not None]
    if not runs:
        return text
    late = max(run["late_p99_ms"] for run in runs)
    used = max(run["engines_cpu_share"] for run in runs)
    text += (
        f" The emulated engines used at most {used:.0%} of a core, and 99 % of their events were at most {late:.0f} ms "
        "late in every run."
    )
    if late > _LATE_MS:
        text += f" **That is more than {_LATE_MS:.0f} ms: the machine was too busy for these figures.**"
    return text
