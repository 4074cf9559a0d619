"""One coarse clock for every deadline of every connection.

A timer object per request and per chunk would cost more than the chunk itself. Connections keep a plain number
instead, and one task looks at all of them a few times a second: a deadline is met late by at most one tick.
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
    """Something with a deadline."""

    deadline: float
    """Reading of the clock after which :meth:`on_deadline` is due; ``NEVER`` switches it off."""

    def on_deadline(self, now: float) -> None:
        """Act: end the connection, or move ``deadline`` on."""


class Deadlines:
    """Watches the deadlines of everything that is registered.

    Args:
        tick_seconds: how often it looks.
        clock: seconds that only grow; shared by all who set deadlines.
    """

    def __init__(self, tick_seconds: float = 0.25, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._tick_seconds = tick_seconds
        self._watched: set[Timed] = set()

    def watch(self, timed: Timed) -> None:
        """Look at ``timed.deadline`` from now on."""
        self._watched.add(timed)

    def forget(self, timed: Timed) -> None:
        """Stop looking at it; does nothing if it is not watched."""
        self._watched.discard(timed)

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(self._tick_seconds)
            now = self.clock()
            for timed in [timed for timed in self._watched if timed.deadline <= now]:
                try:
                    timed.on_deadline(now)
                except Exception:
                    # One connection's trouble must not end the deadlines of all others.
                    self.forget(timed)
                    logger.exception("a deadline could not be kept")
