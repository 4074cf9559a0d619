"""Rendezvous hashing (Thaler and Ravishankar, 1996): a key maps to one backend, even if others come and go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

__all__ = ["MAX_WEIGHT", "highest", "highest_by_share", "weights"]

MAX_WEIGHT = (1 << 64) - 1


class _HasUrlKey(Protocol):
    @property
    def url_key(self) -> int: ...


def highest(candidates: Sequence[_HasUrlKey], key: int) -> int:
    """Position of the candidate that ``key`` maps to."""
    found = weights(candidates, key)
    return found.index(max(found))


def highest_by_share(candidates: Sequence[_HasUrlKey], costs: Sequence[float], key: int) -> int:
    """As :func:`highest`; of many keys, each candidate gets a share that is the inverse of its cost.

    Source: Schindelhauer and Schomaker, Weighted Distributed Hash Tables, 2005.
    """
    drawn = [-math.log((weight + 1) / (MAX_WEIGHT + 2)) for weight in weights(candidates, key)]
    scores = [one * cost for one, cost in zip(drawn, costs, strict=True)]
    return scores.index(min(scores))


def weights(candidates: Sequence[_HasUrlKey], key: int) -> list[int]:
    """The weight of each candidate for ``key``, independent of the other candidates; 64 bits."""
    return [_mixed(key ^ one.url_key) for one in candidates]


def _mixed(word: int) -> int:
    """Mix the bits of ``word``: each bit of the result depends on all (MurmurHash3, Stafford's variant, two rounds)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MAX_WEIGHT
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MAX_WEIGHT
    return word ^ (word >> 31)
