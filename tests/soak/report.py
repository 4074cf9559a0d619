"""The figures at the end, as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Check", "Report"]

_SHOWN_DETAILS = 15


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        what: the rule.
        figure: the measured value.
        bound: the allowed value.
        holds: whether the rule holds.
        details: useful information if it does not.
    """

    what: str
    figure: str
    bound: str
    holds: bool
    details: tuple[str, ...] = ()


@dataclass(slots=True)
class Report:
    """The report printed at the end."""

    title: str
    checks: list[Check] = field(default_factory=list)
    counts: list[tuple[str, Mapping[str, int]]] = field(default_factory=list)

    def check(self, what: str, figure: str, bound: str, *, holds: bool, details: tuple[str, ...] = ()) -> None:
        """Add a check."""
        self.checks.append(Check(what, figure, bound, holds, details))

    def count(self, what: str, counts: Counter[str]) -> None:
        """Add a table of counts, most frequent first."""
        self.counts.append((what, dict(counts.most_common())))

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    def lines(self) -> Iterator[str]:
        """As Markdown."""
        yield f"\n{self.title}\n"
        yield "| what must hold | found | allowed | |"
        yield "|---|---|---|---|"
        for check in self.checks:
            yield f"| {check.what} | {check.figure} | {check.bound} | {'ok' if check.holds else '**FAILED**'} |"
        for what, counts in self.counts:
            yield f"\n| {what} | count |\n|---|---|"
            yield from (f"| {name} | {count} |" for name, count in counts.items())
        for check in self.checks:
            if not check.holds and check.details:
                yield f"\n{check.what}:"
                yield from (f"  {detail}" for detail in check.details[:_SHOWN_DETAILS])
                if len(check.details) > _SHOWN_DETAILS:
                    yield f"  and {len(check.details) - _SHOWN_DETAILS} more"
