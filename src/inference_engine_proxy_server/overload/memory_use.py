"""This process's memory use, relative to its limit."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path

__all__ = ["MemoryUse", "container_limit_bytes"]

_NO_LIMIT_BYTES = 2**60  # cgroup v1 expresses "no limit" as a number near 2**63


def container_limit_bytes(root: Path = Path("/"), processes: int = 1) -> int | None:
    """The memory limit of this process's control group; ``None`` if there is no limit.

    Args:
        root: root of the file system.
        processes: number of processes that share the limit equally.

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
            # The limits of all parent groups apply, too.
            limits += [_read_limit(one / name) for one in (group, *group.parents) if one.is_relative_to(top)]
    return min((limit // processes for limit in limits if limit is not None and limit < _NO_LIMIT_BYTES), default=None)


def _read_limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # outside this control group's namespace; or the value is "max"
        return None


class MemoryUse:
    """Measures this process's memory use.

    Args:
        limit_bytes: the memory limit; ``None`` for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._page_bytes = resource.getpagesize()

    def share(self) -> float:
        """Resident memory as a fraction of the limit; 0.0 without a limit."""
        if self._limit_bytes is None:
            return 0.0
        try:
            resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        except OSError:  # not on Linux, or no file descriptor is free
            return 0.0
        return resident_pages * self._page_bytes / self._limit_bytes

    @staticmethod
    def trim() -> None:
        """Make the C library return free memory to the kernel; otherwise use would stay at its peak for ever."""
        with contextlib.suppress(AttributeError):  # only glibc has malloc_trim, and only glibc needs it
            ctypes.CDLL(None).malloc_trim(0)
