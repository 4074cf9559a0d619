"""Runs every workload through every target several times, and keeps what has been measured so far in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from load.generator import Report
from suite.progress import Progress, as_minutes
from suite.results import Failure, Results
from suite.tables import failures_list
from suite.targets import Target

__all__ = ["Turn", "run_all", "turns_of"]


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


def run_all(
    turns: Sequence[Turn],
    measure: Callable[[Turn], Report],
    seconds: Callable[[Turn], float],
    results: Results,
    file: Path,
) -> None:
    """Measure all turns; a failed one is reported, and the others go on.

    Args:
        measure: returns the figures of a run; raises OSError or RuntimeError if it failed.
        seconds: estimated duration of a run.
        results: gets the figures and the failures.
        file: updated after each run.
    """
    estimated = sum(map(seconds, turns))
    print(f"{len(turns)} runs, about {as_minutes(estimated)} minutes", file=sys.stderr)
    progress = Progress(estimated)
    try:
        for turn in turns:
            name = turn.target.name
            progress.show(f"{turn.repetition + 1}/{results.rounds}: {turn.workload}, {name}")
            try:
                report = measure(turn)
            except (OSError, RuntimeError) as error:
                failure = Failure(turn.repetition, turn.workload, name, str(error))
                results.failures.append(failure)
                progress.note(failures_list([failure]))
            else:
                results.add(turn.repetition, turn.workload, name, report)
            progress.advance(seconds(turn))
            results.write(file)
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; what there is so far: {file}")
