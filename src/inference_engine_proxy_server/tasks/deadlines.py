"""One coarse timer for the deadlines of all connections.

A timer object per request and chunk would cost more than the chunk itself. Instead, each connection stores its deadline
as a plain number, and one task checks all of them a few times per second. A deadline fires at most one tick late.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["NEVER", "Deadlines", "Timed"]

NEVER = float("inf")

logger = logging.getLogger(__name__)


class Timed(Protocol):
    """An object with a deadline."""

    deadline: float
    """Clock reading at which :meth:`on_deadline` becomes due; ``NEVER`` disables it."""

    def on_deadline(self, now: float) -> None:
        """Act on the deadline: end the connection, or set a later ``deadline``."""


class Deadlines:
    """Checks the deadlines of all registered objects.

    Args:
        tick_seconds: time between two checks.
        clock: monotonic clock, in seconds; shared by everything that sets deadlines.
    """

    def __init__(self, tick_seconds: float = 0.25, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._tick_seconds = tick_seconds
        self._watched: set[Timed] = set()

    def watch(self, timed: Timed) -> None:
        """Start checking ``timed.deadline``."""
        self._watched.add(timed)

    def forget(self, timed: Timed) -> None:
        """Stop checking ``timed``; no effect if it is not watched."""
        self._watched.discard(timed)

    async def run(self) -> None:
        """Check the deadlines until cancelled."""
        while True:
            await asyncio.sleep(self._tick_seconds)
            now = self.clock()
            for timed in [timed for timed in self._watched if timed.deadline <= now]:
                try:
                    timed.on_deadline(now)
                except Exception:
                    # A failure in one connection must not stop the deadlines of all others.
                    self.forget(timed)
                    logger.exception("a deadline handler failed")
