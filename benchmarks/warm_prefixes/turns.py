"""The order of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from suite.targets import Target

__all__ = ["Turn", "turns_of"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One workload through one target, for the first time (0) or again."""

    repetition: int
    workload: str
    target: Target


def turns_of(repetitions: int, workloads: Sequence[str], targets: Sequence[Target]) -> Iterator[Turn]:
    """Targets side by side, each time another one first: a machine's speed changes in minutes."""
    for repetition in range(repetitions):
        first = repetition % len(targets)
        for workload in workloads:
            yield from (Turn(repetition, workload, target) for target in (*targets[first:], *targets[:first]))
