"""Notices when files change, by polling: it works on every file system and for every way of replacing a file.

A file that is being written is left alone: half of a list is a valid list. Nothing tells when a writer has finished, so
a file counts as complete some time after the last write, and later if its last line does not end.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["FileWatch"]

_POLL_SECONDS = 1.0
_COMPLETE_SECONDS = 2.0  # after the last write
_UNENDED_SECONDS = 10.0  # the same for a file without a line feed at its end, as some editors write it

_Stamp = tuple[int, int, int]  # modification time, size, and inode, because many editors write a new file


class FileWatch:
    """Detects whether any of some files has changed, appeared or disappeared.

    Args:
        files: to watch; they need not exist.
        distrusts_fresh: files that may be incomplete now count as changed later, because the caller has not read them.

    Attributes:
        files: may be replaced; the next look then reports a change, unless the new files have the same stamps.
        distrusts: whether the first change may be none: a file was fresh when the watch was created.
    """

    def __init__(self, files: Iterable[Path], *, distrusts_fresh: bool = False) -> None:
        self.files = tuple(files)
        self._stamps = found = self._look()
        if distrusts_fresh:
            pairs = zip(self.files, found, strict=True)
            self._stamps = [None if stamp is None or _is_fresh(file, stamp) else stamp for file, stamp in pairs]
        self.distrusts = self._stamps != found

    def changed(self) -> bool:
        """Whether a file has changed since the last call, or since the watch was created."""
        before, self._stamps = self._stamps, self._look()
        return self._stamps != before

    def changed_completely(self) -> bool:
        """As :meth:`changed`, but a change is not reported while one of the changed files may be incomplete."""
        found = self._look()
        pairs = zip(self.files, self._stamps, found, strict=False)
        if any(after is not None and after != before and _is_fresh(file, after) for file, before, after in pairs):
            return False
        return self.changed()

    async def run(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` after each complete change, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if self.changed_completely():
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


def _is_fresh(file: Path, stamp: _Stamp) -> bool:
    """Whether ``file`` was written so recently that more may follow."""
    age = time.time() - stamp[0] / 1e9
    if not 0 <= age < _UNENDED_SECONDS:  # a time in the future says nothing
        return False
    return age < _COMPLETE_SECONDS or not _ends_a_line(file)


def _ends_a_line(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            content.seek(-1, os.SEEK_END)
            return content.read() == b"\n"
    except OSError:  # it is empty, or gone
        return False
