"""Differences between emulated and real engines, as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from suite.results import Results
from suite.tables import failures_list, markdown_table
from warm_prefixes.figures import spread_of

__all__ = ["EMULATED", "REAL", "comparison", "is_within_goals"]

REAL, EMULATED = ", real engines", ", emulated engines"
_FIGURES = {"hit_rate": "{:.1%}", "first_p50": "{:.3f}", "first_p90": "{:.3f}", "first_p99": "{:.3f}"}
_MOST_POINTS = 1.0  # goal for the hit rate
_MOST_PERCENT = 10.0  # goal for the times


@dataclass(frozen=True, slots=True)
class _Difference:
    """Medians of a figure. ``difference`` is in points for a hit rate, otherwise in percent; ``goal`` is its limit."""

    trace: str
    target: str
    figure: str
    real: float
    emulated: float

    @property
    def difference(self) -> float:
        if self.figure == "hit_rate":
            return 100 * (self.emulated - self.real)
        return 100 * (self.emulated / self.real - 1)

    @property
    def goal(self) -> float | None:
        """``None``: p99 depends too much on chance."""
        return {"hit_rate": _MOST_POINTS, "first_p99": None}.get(self.figure, _MOST_PERCENT)

    @property
    def is_within_goal(self) -> bool:
        return self.goal is None or abs(self.difference) <= self.goal

    def row(self) -> list[str]:
        form = _FIGURES[self.figure]
        unit = "points" if self.figure == "hit_rate" else "%"
        goal = "-" if self.goal is None else f"{self.goal:.0f} {unit}"
        verdict = "" if self.goal is None else "within" if self.is_within_goal else "**missed**"
        figures = [form.format(self.real), form.format(self.emulated), f"{self.difference:+.1f} {unit}"]
        return [self.trace, self.target, self.figure, *figures, goal, verdict]


def comparison(results: Results) -> str:
    """The table, and everything that failed."""
    head = ["trace", "proxy", "figure", "real", "emulated", "difference", "goal", ""]
    parts = [markdown_table(head, [difference.row() for difference in _differences(results)])]
    about = results.about
    parts.append(
        f"{about['date']}, commit {about['commit']}; medians of {results.rounds} seed(s), up to "
        f"{about['seconds']:.0f} s each; {about['cores']} cores ({about['processor']}). "
        "Times to the first token are in seconds."
    )
    if results.failures:
        parts += ["Without a figure:", failures_list(results.failures)]
    return "\n\n".join(parts)


def is_within_goals(results: Results) -> bool:
    """Whether there are differences, and none exceeds its goal."""
    differences = list(_differences(results))
    return bool(differences) and all(difference.is_within_goal for difference in differences)


def _differences(results: Results) -> Iterator[_Difference]:
    for workload, by_target in results.reports.items():
        if not workload.endswith(REAL):
            continue
        trace = workload.removesuffix(REAL)
        for target, runs in by_target.items():
            others = results.reports.get(trace + EMULATED, {}).get(target, [])
            for figure in _FIGURES:
                real, emulated = spread_of(runs, figure), spread_of(others, figure)
                if real is not None and emulated is not None:
                    yield _Difference(trace, target, figure, real.median, emulated.median)
