"""How late the event loop is, and what held it up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

__all__ = ["BlockerWitness", "LoopLag"]

_HELD_UP_SECONDS = 0.25  # later than this is too late
_FOR_SECONDS = 1.0
_FRAMES = 6  # of whoever holds up the loop, the innermost ones


class LoopLag:
    """Lateness of a task that sleeps, which is what everything else on the loop has to wait as well.

    Attributes:
        seconds: at the last look.
        is_lasting: it has been too much for a while, and at each look.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due_at = clock()
        self._late_since: float | None = None
        self.seconds = 0.0
        self.is_lasting = False

    def expect(self, seconds: float) -> None:
        """The task goes to sleep for so long."""
        self._due_at = self._clock() + seconds

    def look(self) -> None:
        """The task has woken up."""
        now = self._clock()
        self.seconds = max(now - self._due_at, 0.0)
        if self.seconds <= _HELD_UP_SECONDS:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        # Two looks at least: one slow callback, or a machine that was stopped for a while, is no overload.
        self.is_lasting = self._late_since is not None and now - self._late_since >= _FOR_SECONDS


class BlockerWitness:
    """Sees what the event loop is doing when it has not turned for a while.

    The kernel's timer interrupts whatever runs, and Python shows where that is: no thread, and a system call each time
    the timer is set again. What is seen is only noted, as a signal may interrupt the writing of a log line too.

    Attributes:
        seen: where it stood, innermost first; empty: nothing since it was last cleared.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._works = threading.current_thread() is threading.main_thread()
        self.seen = ""

    def __enter__(self) -> Self:
        if self._works:
            self._before = signal.signal(signal.SIGALRM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._works:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def postpone(self) -> None:
        """The loop turns: look only when it has not for as long again."""
        if self._works:
            signal.setitimer(signal.ITIMER_REAL, self._patience_seconds)

    def _note(self, _number: int, frame: FrameType | None) -> None:
        places: list[str] = []
        while frame is not None and len(places) < _FRAMES:
            code = frame.f_code
            places.append(f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{frame.f_lineno})")
            frame = frame.f_back
        self.seen = " < ".join(places)
