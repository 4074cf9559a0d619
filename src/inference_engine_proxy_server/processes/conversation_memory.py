"""Remembers a number for each of the latest conversations, in memory that all workers share.

The memory is a table with a fixed number of entries. A key can be in one of them only, so a new key replaces the old
one there. Two workers may write the same entry at once; then it may have the key of one and the number of the other,
which misleads one request about where its conversation was. That is rare and harmless, so there is no lock.
"""

from __future__ import annotations

import mmap

__all__ = ["ConversationMemory"]

_ENTRIES = 2**17
_NUMBER_BYTES = 8


class ConversationMemory:
    """The table. Created before the workers, which inherit the memory. Unused parts of it take none.

    Args:
        entries: a power of two.
    """

    def __init__(self, entries: int = _ENTRIES) -> None:
        cells = memoryview(mmap.mmap(-1, 2 * entries * _NUMBER_BYTES))
        self._keys = cells[: entries * _NUMBER_BYTES].cast("q")
        self._numbers = cells[entries * _NUMBER_BYTES :].cast("Q")
        self._mask = entries - 1

    def remember(self, key: int, number: int) -> None:
        """Remember ``number``, from 0 to below 2**64, for ``key``, from -2**63 to below 2**63."""
        at = key & self._mask
        self._keys[at] = key
        self._numbers[at] = number

    def recall(self, key: int) -> int | None:
        """The number for ``key``; ``None`` when unknown."""
        at = key & self._mask
        return self._numbers[at] if self._keys[at] == key else None
