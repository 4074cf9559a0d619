"""Lease counts and queue lengths of all workers, in memory that they share.

A lease counts for all workers at once, as if there were one process. Each number has a single writer, and a write is a
single store of the processor, so no lock is needed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from zlib import crc32

__all__ = ["SharedLeases"]

# Every worker finds a backend's row by its URL alone, whichever version of the fleet it has read. Unused rows take no
# memory, so there are many: of two hundred fleets with a hundred backends each, one has two backends in the same row,
# each of which then seems to have the other's requests, too.
_ROWS = 2**20
_ROWS_OF_MODELS = 2**10  # that follow the row of a backend and count by model; two for each model
_COUNT_BYTES = 4


def _number_of(url: str) -> int:
    return crc32(url.encode()) % _ROWS


class SharedLeases:
    """The counts. Created before the workers, which inherit the memory.

    Args:
        workers: the number of workers.

    Attributes:
        leases: leases of each worker on all backends together.
        waiting: requests in the queue of each worker.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        rows = _ROWS + _ROWS_OF_MODELS + 2
        self._counts = memoryview(mmap.mmap(-1, rows * workers * _COUNT_BYTES)).cast("i")
        self.leases = self._row_at(rows - 2)
        self.waiting = self._row_at(rows - 1)

    def row(self, url: str) -> memoryview:
        """Leases of each worker on the backend ``url``."""
        return self._row_at(_number_of(url))

    def rows_of_model(self, url: str, model: str) -> tuple[memoryview, memoryview]:
        """Leases of each worker on one model of the backend ``url``, and requests of each worker that wait for it."""
        first = _number_of(url) + 1
        at = crc32(model.encode()) % (_ROWS_OF_MODELS // 2)
        return self._row_at(first + 2 * at), self._row_at(first + 2 * at + 1)

    def clear(self, worker: int, urls: Iterable[str]) -> None:
        """Remove the requests of ``worker``, which has ended, on the backends ``urls``."""
        for row in (self.leases, self.waiting, *map(self.row, urls)):
            row[worker] = 0
        for url in urls:
            first = _number_of(url) + 1
            for row in map(self._row_at, range(first, first + _ROWS_OF_MODELS)):
                if row[worker]:
                    row[worker] = 0

    def _row_at(self, number: int) -> memoryview:
        first = number * self._workers
        return self._counts[first : first + self._workers]
