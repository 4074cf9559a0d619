"""Rendezvous hashing (Thaler and Ravishankar, 1996): a key falls to one backend, whichever others come or go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["MAX_WEIGHT", "highest", "weights"]

MAX_WEIGHT = (1 << 64) - 1


class _HasUrlKey(Protocol):
    @property
    def url_key(self) -> int: ...


def highest(candidates: Sequence[_HasUrlKey], key: int) -> int:
    """Position of the candidate that ``key`` falls to."""
    found = weights(candidates, key)
    return found.index(max(found))


def weights(candidates: Sequence[_HasUrlKey], key: int) -> list[int]:
    """The weight of each candidate for ``key``, independent of the other candidates; 64 bits."""
    return [_mixed(key ^ one.url_key) for one in candidates]


def _mixed(word: int) -> int:
    """A word each of whose bits depends on all bits of ``word`` (two rounds of Stafford's variant of MurmurHash3)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MAX_WEIGHT
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MAX_WEIGHT
    return word ^ (word >> 31)
