"""Progress display: one line that is redrawn on a terminal, otherwise one line per step."""

from __future__ import annotations

import sys
import time

__all__ = ["Progress", "as_minutes"]

_BAR_WIDTH = 24


def as_minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


class Progress:
    """Counts estimated seconds, and corrects the remaining time by how good the estimates have been."""

    def __init__(self, estimated_seconds: float) -> None:
        self._estimated = estimated_seconds
        self._done = 0.0
        self._began = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def show(self, what: str) -> None:
        share = min(1.0, self._done / self._estimated)
        elapsed = time.monotonic() - self._began
        left = elapsed * (1 / share - 1) if share > 0.05 else self._estimated * (1 - share)
        bar = ("#" * round(share * _BAR_WIDTH)).ljust(_BAR_WIDTH, ".")
        line = f"[{bar}] {share:4.0%}, {as_minutes(left)} left  {what}"
        print(
            f"\r{line:100.100}" if self._is_terminal else line, end="" if self._is_terminal else "\n", file=sys.stderr
        )

    def advance(self, estimated_seconds: float) -> None:
        self._done += estimated_seconds

    def note(self, text: str) -> None:
        """Print a line that is not redrawn."""
        print(f"\r{text:100}" if self._is_terminal else text, file=sys.stderr)
