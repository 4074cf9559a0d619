"""Suspension: a backend that answers polls but fails requests gets only a trial request every few seconds.

The time between trials does not grow, because a backend that has recovered should be used soon. With the number of
failures grows the slow start after a successful trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["Suspension"]

_SECONDS = 5.0  # between trials; Envoy's 30 s is long for an idle GPU
_JITTER = 0.2
_HARMLESS_FALLS = 2  # a restart, and one more; with the third fall the backend is flapping


class Suspension:
    """The suspension of one backend.

    Args:
        draw: returns a random number from 0 to below 1.

    Attributes:
        is_active: the backend is suspended, or on trial after a suspension.
        stands_still: the suspension is due to work without progress, and ends when there is progress.
        reason: why it is suspended, for people.
        began_at: when the latest suspension began.
        until: when a request may try the backend; -inf if it is not suspended.
        falls: how often the backend failed and left the rotation since its last long period of good health.
    """

    __slots__ = ("_draw", "began_at", "falls", "is_active", "reason", "stands_still", "until")

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self.is_active = False
        self.stands_still = False
        self.reason = ""
        self.began_at = -math.inf
        self.until = -math.inf
        self.falls = 0

    def __repr__(self) -> str:
        return f"<Suspension active={self.is_active} until={self.until:g} falls={self.falls} {self.reason!r}>"

    def begin(self, now: float, reason: str, *, stands_still: bool) -> None:
        """Suspend the backend, and count one more fall."""
        self.falls += 1
        self._begin(now, reason, stands_still=stands_still)

    def begin_if_flapping(self, now: float) -> bool:
        """Suspend a backend that comes back after too many falls. Returns whether there were too many."""
        if self.falls <= _HARMLESS_FALLS:
            return False
        self._begin(now, "it keeps failing", stands_still=False)
        return True

    def lift(self) -> None:
        """End the suspension."""
        self.is_active = self.stands_still = False
        self.until = -math.inf

    def _begin(self, now: float, reason: str, *, stands_still: bool) -> None:
        self.is_active = True
        self.stands_still = stands_still
        self.reason = reason
        self.began_at = now
        self.until = max(self.until, now + _SECONDS * (1 + _JITTER * self._draw()))
