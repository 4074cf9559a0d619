"""Event-loop lag, and the code that blocked the loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

__all__ = ["LoopBlockDetector", "LoopLag"]

_TOO_LATE_SECONDS = 0.25
_LASTING_SECONDS = 1.0
_FRAMES = 6  # innermost stack frames that are reported


class LoopLag:
    """Measures how late a sleeping task wakes up, which is the delay for everything else on the loop as well.

    Attributes:
        seconds: the last measurement.
        is_lasting: every measurement has been too high for some time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due_at = clock()
        self._late_since: float | None = None
        self.seconds = 0.0
        self.is_lasting = False

    def begin_sleep(self, seconds: float) -> None:
        """Call before the task sleeps for ``seconds``."""
        self._due_at = self._clock() + seconds

    def end_sleep(self) -> None:
        """Call when the task has woken up."""
        now = self._clock()
        self.seconds = max(now - self._due_at, 0.0)
        if self.seconds <= _TOO_LATE_SECONDS:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        # At least two measurements: one slow callback, or a machine that was suspended, is not an overload.
        self.is_lasting = self._late_since is not None and now - self._late_since >= _LASTING_SECONDS


class LoopBlockDetector:
    """Records the stack of code that has blocked the event loop for a while.

    A kernel timer interrupts the running code, and Python passes the current frame to the signal handler. This needs no
    thread, only one system call each time the timer is rearmed. The handler records the stack without logging it,
    because the signal may interrupt the writing of a log line. Works in the main thread only; elsewhere, does nothing.

    Attributes:
        blocking_stack: the recorded stack, innermost frame first; empty if nothing was recorded since it was cleared.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._is_enabled = threading.current_thread() is threading.main_thread()
        self.blocking_stack = ""

    def __enter__(self) -> Self:
        if self._is_enabled:
            self._previous_handler = signal.signal(signal.SIGALRM, self._record_stack)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_enabled:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._previous_handler)

    def rearm(self) -> None:
        """Restart the timer; called while the loop is running."""
        if self._is_enabled:
            signal.setitimer(signal.ITIMER_REAL, self._patience_seconds)

    def _record_stack(self, _number: int, frame: FrameType | None) -> None:
        calls: list[str] = []
        while frame is not None and len(calls) < _FRAMES:
            code = frame.f_code
            calls.append(f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{frame.f_lineno})")
            frame = frame.f_back
        self.blocking_stack = " < ".join(calls)
