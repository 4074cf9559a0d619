"""Signs of life of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Pulse"]


class Pulse:
    """Calls a function again and again, as long as the event loop runs.

    Args:
        seconds: between two calls; ``None`` for no calls.
        beat: the function. Raises nothing.
    """

    def __init__(self, seconds: float | None, beat: Callable[[], None]) -> None:
        self._seconds = seconds
        self._beat = beat
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start now, on the running loop."""
        if self._seconds is not None:
            self._beat()
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self.start)

    def stop(self) -> None:
        """Call it no more."""
        if self._timer is not None:
            self._timer.cancel()
