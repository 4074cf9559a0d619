"""The events of engines in real time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from simulation.events import Event, Events

__all__ = ["RealTime"]


class RealTime(Events):
    """Runs events when they are due in real time.

    A late event still sees the time for which it was scheduled, so delays of this process do not add up: the times
    within the engines are exactly those of the cost model.

    Attributes:
        delays: number of times that events ran late, by milliseconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._began_at = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._is_running = False
        self.delays = Counter[int]()

    def at(self, when: float, call: Any, *args: Any) -> Event:
        event = super().at(when, call, *args)
        if not self._is_running:
            self._set_timer()
        return event

    def catch_up(self) -> None:
        """Run all events that are due, so that :meth:`time` is the real time. Has no effect within an event."""
        if not self._is_running:
            self._run_until(self._loop.time() - self._began_at)

    def _run_until(self, now: float) -> None:
        if (due := self.next_at) is not None and due <= now:
            self.delays[int((now - due) * 1000)] += 1
        self._is_running = True
        try:
            self.run(now)
        finally:
            self._is_running = False
        self._set_timer()

    def _ring(self, due: float) -> None:
        self._run_until(max(due, self._loop.time() - self._began_at))  # the difference may be rounded down

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self.next_at
        self._timer = None if due is None else self._loop.call_at(self._began_at + due, self._ring, due)
