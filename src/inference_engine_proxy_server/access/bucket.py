"""A limit per minute: a token bucket, which holds a minute's amount and refills evenly.

After a pause, a key may use a minute's amount at once, but never twice that amount around the turn of a minute. Levels
are computed on demand, without a background task.
"""

from __future__ import annotations

import math
from typing import Protocol

__all__ = ["WINDOW_SECONDS", "Bucket", "LocalBucket"]

WINDOW_SECONDS = 60.0
"""In which an empty bucket refills."""


class Bucket(Protocol):
    """The amount that a key has left.

    Attributes:
        size: its level when full, and the refill per minute.
    """

    size: int

    def level(self, now: float) -> float:
        """The amount that may be used here; negative after use beyond the limit."""

    def use(self, amount: float, now: float) -> None:
        """Use ``amount``."""

    def reading(self, now: float) -> tuple[int, int, int]:
        """Its size, the remaining amount, and the seconds until it is full."""

    def seconds_until(self, level: float, now: float) -> float:
        """The seconds until it has ``level``."""


class LocalBucket:
    """A token bucket.

    Attributes:
        size: its level when full, and the refill per minute.
    """

    __slots__ = ("_at", "_level", "size")

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self._level = float(size)
        self._at = now

    def level(self, now: float) -> float:
        """The remaining amount; negative after use beyond the limit."""
        level = self._level
        if now != self._at:
            level += (now - self._at) * self.size / WINDOW_SECONDS
            self._level = level = level if level < self.size else float(self.size)
            self._at = now
        return level

    def use(self, amount: float, now: float) -> None:
        self._level = self.level(now) - amount

    def reading(self, now: float) -> tuple[int, int, int]:
        """Its size, the remaining amount, and the seconds until it is full."""
        level = self.level(now)
        return self.size, int(level) if level > 0 else 0, math.ceil((self.size - level) * WINDOW_SECONDS / self.size)

    def seconds_until(self, level: float, now: float) -> float:
        return max(0.0, (level - self.level(now)) * WINDOW_SECONDS / self.size)
