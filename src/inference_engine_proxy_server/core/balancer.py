"""Which of several backends gets the next request. Pure: no clock, no state, no I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

__all__ = ["LAST_CHOICE", "choose"]

LAST_CHOICE = 1e9
"""Added to the rank of a backend of which little is known, or nothing good, so that all others go first."""

_TRIES = 8


def choose(ranks: Sequence[float], costs: Sequence[float], draw: Callable[[], float] = random.random) -> int:
    """Which has the lowest rank; ties fall at random, by shares.

    Every request passes by here, before fleets of any size: what looks at all ranks is C.

    Args:
        ranks: what the load of each weighs, ``LAST_CHOICE`` added where it must; at least one.
        costs: what one request weighs on each: twice as much on a backend that should get half as many.
        draw: a random number from 0 to below 1.

    Returns:
        Its position.
    """
    least = min(ranks)
    ties = ranks.count(least)
    if ties == 1:
        return ranks.index(least)
    if costs.count(costs[0]) == len(costs):
        return _drawn_evenly(ranks, least, ties, draw)
    return _drawn_by_shares([at for at, rank in enumerate(ranks) if rank == least], costs, draw)


def _drawn_evenly(ranks: Sequence[float], least: float, ties: int, draw: Callable[[], float]) -> int:
    count = len(ranks)
    if 4 * ties >= count:  # then trying is cheaper than going through them
        for _ in range(_TRIES):
            at = int(draw() * count)
            if ranks[at] == least:
                return at
    at = -1
    for _ in range(1 + int(draw() * ties)):
        at = ranks.index(least, at + 1)
    return at


def _drawn_by_shares(tied: Sequence[int], costs: Sequence[float], draw: Callable[[], float]) -> int:
    rest = draw() * sum(1 / costs[at] for at in tied)
    for at in tied:
        rest -= 1 / costs[at]
        if rest < 0:
            return at
    return tied[-1]
