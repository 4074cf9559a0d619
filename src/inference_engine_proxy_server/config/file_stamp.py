"""Tells whether a file has changed since it was last read."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FileStamp", "stamp_of", "stamps_of_settings"]

FileStamp = tuple[int, int, int]
"""Changes with the file: when it was written, its size, and which file it is; many editors write a new one."""


def stamp_of(file: Path) -> FileStamp | None:
    """The stamp of ``file`` now; ``None``: it is not there, or cannot be looked at."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def stamps_of_settings(config_file: str | None) -> list[FileStamp | None]:
    """The stamps of the files that settings come from; ``config_file``: the one that CONFIG_FILE names."""
    return [stamp_of(Path(file)) for file in (".env", config_file) if file]
