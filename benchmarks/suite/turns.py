"""The order of measurements in a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from suite.steps import STEPS, Step
from suite.targets import Target

__all__ = ["Turn", "turns_of"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One step of one target in one round."""

    round: int
    step: Step
    target: Target

    def seconds(self, pace: float) -> float:
        return self.step.seconds(self.target, pace)


def turns_of(rounds: int, steps: list[str], targets: list[Target]) -> Iterator[Turn]:
    """All targets one after the other in each step, in reverse order every second round: a machine's speed drifts."""
    for number in range(rounds):
        for step in (STEPS[name] for name in steps):
            if step.rounds is None or number < step.rounds:
                in_order = targets if number % 2 == 0 else targets[::-1]
                yield from (Turn(number, step, target) for target in in_order if step.applies_to(target))
