"""Notices when files change, by polling: it works on every file system and for every way of replacing a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["FileWatch"]

_POLL_SECONDS = 1.0

_Stamp = tuple[int, int, int]  # modification time, size, and inode, because many editors write a new file


class FileWatch:
    """Detects whether any of some files has changed, appeared or disappeared.

    Args:
        files: to watch; they need not exist.

    Attributes:
        files: may be replaced; the next look then reports a change, unless the new files have the same stamps.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._stamps = self._look()

    def changed(self) -> bool:
        """Whether a file has changed since the last call, or since the watch was created."""
        before, self._stamps = self._stamps, self._look()
        return self._stamps != before

    async def run(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` after each change, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if self.changed():
                on_change()

    def _look(self) -> list[_Stamp | None]:
        return list(map(_stamp_of, self.files))


def _stamp_of(file: Path) -> _Stamp | None:
    """The stamp of ``file``; ``None`` when it is missing or not accessible."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
