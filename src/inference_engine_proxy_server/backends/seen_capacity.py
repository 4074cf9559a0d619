"""How many requests an engine runs at a time, as seen from its own counts, if it does not report a limit."""

from __future__ import annotations

__all__ = ["SeenCapacity"]

_FEW = 1 / 8  # of the running requests: so many wait at high load because they came since the current step began


class SeenCapacity:
    """The capacity of one engine, from its numbers of running and waiting requests at successive polls.

    While an engine reads a burst of prompts, requests wait although it has room, and the number of running ones grows.
    If that number does not grow from one poll to the next, the others wait for room.

    The result is a lower bound. Measured on vLLM 0.32.0: a long prompt took the whole token budget of each step, and
    one of 16 slots was used while five requests waited.
    """

    __slots__ = ("_most_running", "_running_before")

    def __init__(self) -> None:
        self._most_running = 0.0
        self._running_before: float | None = None  # at the last poll; None if hardly any request waited then

    def look(self, running: float | None, waiting: float | None) -> int | None:
        """Take in the counts of one poll; ``None`` counts as 0.

        Returns the most requests that were seen running at a time; ``None`` if the engine seems to have room for more.
        """
        running, waiting = running or 0.0, waiting or 0.0
        self._most_running = max(self._most_running, running)
        before = self._running_before
        has_waiting = waiting > running * _FEW
        self._running_before = running if has_waiting else None
        is_full = has_waiting and before is not None and running <= before * (1 + _FEW)
        return int(self._most_running) if is_full and self._most_running else None
