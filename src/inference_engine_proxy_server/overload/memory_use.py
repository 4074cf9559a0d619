"""How much of the memory it may use this process uses."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path

__all__ = ["MemoryUse", "container_limit_bytes"]

_NO_LIMIT_BYTES = 2**60  # cgroup v1 says "none" by a number near 2**63


def container_limit_bytes(root: Path = Path("/"), processes: int = 1) -> int | None:
    """The memory limit of the control group that this process is in; ``None``: there is none.

    Args:
        root: of the file system.
        processes: that share it; each gets its part.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (memory.max) and cgroup-v1/memory.rst.
    """
    limits = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                top, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            group = top / path.lstrip("/")
            # A limit of any group around this one holds too.
            limits += [_read_limit(one / name) for one in (group, *group.parents) if one.is_relative_to(top)]
    return min((limit // processes for limit in limits if limit is not None and limit < _NO_LIMIT_BYTES), default=None)


def _read_limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not in this group's name space; or "max"
        return None


class MemoryUse:
    """This process's share of its limit.

    Args:
        limit_bytes: ``None``: it has none.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._page_bytes = resource.getpagesize()

    def share(self) -> float:
        """What is in use, 1.0 being all of it; 0.0 without a limit."""
        if self._limit_bytes is None:
            return 0.0
        try:
            resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        except OSError:  # not on Linux; or no file can be opened at the moment
            return 0.0
        return resident_pages * self._page_bytes / self._limit_bytes

    @staticmethod
    def give_back() -> None:
        """Let the C library return what it keeps for later: else a peak would look like use for ever."""
        with contextlib.suppress(AttributeError):  # only glibc has it, and needs it
            ctypes.CDLL(None).malloc_trim(0)
