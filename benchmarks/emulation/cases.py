"""What is measured: a trace of the simulation's catalogue, on a fleet of another size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from simulation.engine_spec import EngineSpec, spec_in
from simulation.trace import Session, Trace

__all__ = ["Case", "cases_of"]


@dataclass(frozen=True, slots=True)
class Case:
    """A trace on a fleet; ``trace`` has its size and duration."""

    trace: Trace

    @property
    def name(self) -> str:
        return f"{self.trace.name} on {self.trace.backends}"

    @property
    def engines(self) -> list[EngineSpec]:
        return [spec_in(self.trace, number) for number in range(self.trace.backends)]

    def sessions(self, seed: int) -> list[Session]:
        """The same for each proxy."""
        return self.trace.sessions(Random(f"trace {seed}"), self.trace.seconds)


def cases_of(traces: Iterable[Trace], sizes: Iterable[int], seconds: float) -> dict[str, Case]:
    """Every trace on fleets of every size, for at most ``seconds``; by name."""
    sizes = list(sizes)
    cases = (
        Case(trace.shortened(min(1.0, seconds / trace.seconds)).resized(size)) for trace in traces for size in sizes
    )
    return {case.name: case for case in cases}
