"""The order of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from suite.targets import Target

__all__ = ["Turn", "turns_of"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One workload through one target; ``repetition`` counts from 0."""

    repetition: int
    workload: str
    target: Target


def turns_of(repetitions: int, workloads: Sequence[str], targets: Sequence[Target]) -> Iterator[Turn]:
    """All targets one after the other, each time starting with another one: a machine's speed drifts within minutes."""
    for repetition in range(repetitions):
        first = repetition % len(targets)
        for workload in workloads:
            yield from (Turn(repetition, workload, target) for target in (*targets[first:], *targets[:first]))
