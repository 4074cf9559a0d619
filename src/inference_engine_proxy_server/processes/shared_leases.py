"""How many requests each worker has on each backend, and waiting, in memory that all workers share.

So what one worker has sent counts for all of them in the same moment, as if there were one process. Each number has one
writer, and writing it is one store of the processor, so there is nothing to lock.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from zlib import crc32

__all__ = ["SharedLeases"]

# Every worker finds a backend's row by its URL alone, whatever it has read of a changed fleet. Rows that nobody uses
# take no memory, so there are enough: of two hundred fleets with a hundred backends, one has two that share a row, and
# then each seems to have the other's requests, too.
_ROWS = 2**20
_COUNT_BYTES = 4


class SharedLeases:
    """The numbers; made before the workers are, which inherit it.

    Args:
        workers: how many there are.

    Attributes:
        leases: the number of requests of each worker on all backends together.
        waiting: the number of those that wait for a place.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._counts = memoryview(mmap.mmap(-1, (_ROWS + 2) * workers * _COUNT_BYTES)).cast("i")
        self.leases = self._row_at(_ROWS)
        self.waiting = self._row_at(_ROWS + 1)

    def row(self, url: str) -> memoryview:
        """The number of requests of each worker on the backend ``url``."""
        return self._row_at(crc32(url.encode()) % _ROWS)

    def clear(self, worker: int, urls: Iterable[str]) -> None:
        """``worker`` has ended, and its requests on ``urls`` with it."""
        for row in (self.leases, self.waiting, *map(self.row, urls)):
            row[worker] = 0

    def _row_at(self, number: int) -> memoryview:
        first = number * self._workers
        return self._counts[first : first + self._workers]
