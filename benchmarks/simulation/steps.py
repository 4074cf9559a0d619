"""A series of steps of an engine, which takes one event."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulation.events import Event

__all__ = ["Steps"]


@dataclass(slots=True)
class Steps:
    """A series of ``count`` steps; the first takes ``seconds``, each later one ``growth`` more than the one before."""

    began_at: float
    count: int
    seconds: float
    growth: float
    event: Event | None = None

    def duration(self, count: int) -> float:
        """Seconds that the first ``count`` steps take."""
        return count * self.seconds + self.growth * count * (count - 1) / 2

    def begun_by(self, now: float) -> int:
        """Number of steps begun before ``now``."""
        passed = now - self.began_at
        if self.growth > 0:
            linear = self.seconds - self.growth / 2
            guess = (math.sqrt(linear * linear + 2 * self.growth * passed) - linear) / self.growth
        else:
            guess = passed / self.seconds
        return max(1, min(self.count, math.ceil(guess - 1e-9)))
