"""Which of several backends gets the next request. Pure: no clock, no state, no I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

__all__ = ["LAST_CHOICE", "choose"]

LAST_CHOICE = 1e9
"""Added to the rank of a backend of which little is known, or nothing good, so that all others go first."""

_TRIES = 3
_MANY = 16  # backends, from which on to look at all of them costs more than to draw some in vain


def choose(
    ranks: Sequence[float], costs: Sequence[float] | None = None, draw: Callable[[], float] = random.random
) -> int:
    """Which has the lowest rank; ties fall at random, by shares.

    Every request passes by here, before fleets of any size: what looks at all ranks is C.

    Args:
        ranks: what the load of each weighs, 0 or more, ``LAST_CHOICE`` added where it must; at least one.
        costs: what one request weighs on each: twice as much on a backend that should get half as many; ``None``: the
            same on all.
        draw: a random number from 0 to below 1.

    Returns:
        Its position.
    """
    count = len(ranks)
    if costs is None and count > _MANY:
        for _ in range(_TRIES):
            at = int(draw() * count)
            if not ranks[at]:  # nobody is less busy than who is idle
                return at
    least = min(ranks)
    if costs is not None:
        return _drawn_by_shares([at for at, rank in enumerate(ranks) if rank == least], costs, draw)
    if count > 1:
        for _ in range(_TRIES):  # in a fleet with something to spare many tie, and the first draw is one of them
            at = int(draw() * count)
            if ranks[at] == least:
                return at
    at = ranks.index(least)
    for _ in range(int(draw() * ranks.count(least))):
        at = ranks.index(least, at + 1)
    return at


def _drawn_by_shares(tied: Sequence[int], costs: Sequence[float], draw: Callable[[], float]) -> int:
    rest = draw() * sum(1 / costs[at] for at in tied)
    for at in tied:
        rest -= 1 / costs[at]
        if rest < 0:
            return at
    return tied[-1]
