"""Scheduled calls in the order of their times: the clock of the engines, in virtual and in real time."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any

__all__ = ["Event", "Events"]


class Event:
    """A scheduled call that can be cancelled."""

    __slots__ = ("args", "call", "is_cancelled")

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.call = call
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        """Cancel the call."""
        self.is_cancelled = True


class Events:
    """Scheduled calls; calls due at the same time run in the order in which they were scheduled.

    During a call, the time is the one for which it was scheduled, even if it runs late.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()

    @property
    def next_at(self) -> float | None:
        """Time of the next call; ``None`` if there is none."""
        while self._events and self._events[0][2].is_cancelled:
            heapq.heappop(self._events)
        return self._events[0][0] if self._events else None

    def time(self) -> float:
        """Seconds since the start."""
        return self._now

    def at(self, when: float, call: Callable[..., object], *args: Any) -> Event:
        """Call ``call`` at ``when``."""
        event = Event(call, args)
        heapq.heappush(self._events, (when, next(self._numbers), event))
        return event

    def run(self, until: float = math.inf) -> None:
        """Run all calls due by ``until``."""
        while self._events and self._events[0][0] <= until:
            when, _, event = heapq.heappop(self._events)
            if not event.is_cancelled:
                self._now = when
                event.call(*event.args)
        if until < math.inf:
            self._now = until
