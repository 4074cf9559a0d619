"""The figures of fleets behind 1, 2, 4, ... replicas, as Markdown tables: one for each kind of clients and fleet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from simulation.report import Results
from simulation.trace import Trace

__all__ = ["replica_tables"]

_COLUMNS = ("p50", "p99", "hits", "max/mean")


def replica_tables(results: Results, traces: Mapping[str, Trace]) -> str:
    """A table for each family of traces that differ only in the number of replicas.

    p50 and p99 of the time to the first token are in seconds. ``hits`` is the share of prompt tokens that engines had
    cached; ``max/mean`` are the requests of the busiest engine, relative to the mean of all, on average over time.
    """
    families: dict[str, list[str]] = {}
    for name in results:
        families.setdefault(name.rpartition("-x")[0], []).append(name)
    lines = [line for family, names in families.items() for line in (*_table(family, names, results, traces), "")]
    return "\n".join(lines)


def _table(family: str, names: list[str], results: Results, traces: Mapping[str, Trace]) -> Iterator[str]:
    trace, policies = traces[names[0]], list(results[names[0]])
    yield f"**{family}**: {trace.about}. {trace.backends} engines."
    yield ""
    yield _row(["replicas", *(f"{policy}: {column}" for policy in policies for column in _COLUMNS)])
    yield "|--:" * (1 + len(policies) * len(_COLUMNS)) + "|"
    for name in names:
        cells = [str(traces[name].replicas)]
        for policy in policies:
            of = results[name][policy]
            cells += [
                _seconds(of["p50"]), _seconds(of["p99"]), f"{of['hit_rate']:.0%}", f"{of['unevenness']:.2f}",
            ]  # fmt: skip
        yield _row(cells)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
