"""Finds the lowest rank, and breaks ties at random. Pure: no clock, no state, no I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from inference_engine_proxy_server.routing.rank_table import RankTable

__all__ = ["COLD", "LAST_CHOICE", "SWAP", "TIER", "choose"]

LAST_CHOICE = 1e9
"""Added to the rank of a backend with doubtful health or an old report, so that all others go first."""

SWAP = 2 * LAST_CHOICE
"""Added to the rank of a backend that must unload another model first, so that one with room goes first."""

COLD = 4 * LAST_CHOICE
"""Added to the rank of a backend for each step by which its model is not awake, so that awake backends go first."""

TIER = 16 * COLD
"""Added to the rank of a backend for each tier above the first: more than all that one tier can differ by."""

_TRIES = range(3)
_MANY = 16  # number of ranks above which a scan costs more than a few failed draws


def choose(
    ranks: Sequence[float], costs: Sequence[float] | None = None, draw: Callable[[], float] = random.random
) -> int:
    """The position of the lowest rank; ties are broken at random, by shares.

    This runs for every request, in fleets of any size. It loops over a plain list of ranks, in C if costs are equal.

    Args:
        ranks: weighted load of each backend, 0 or more, plus ``LAST_CHOICE``, ``SWAP``, ``COLD`` and ``TIER``
            where they apply; at least one.
        costs: weight of one request on each backend, the inverse of the backend's share; ``None`` if all are equal.
        draw: returns a random number from 0 to below 1.
    """
    if costs is not None:
        return _drawn_by_shares(_tied(ranks), costs, draw)
    count = len(ranks)
    if count > _MANY:
        if isinstance(ranks, RankTable):
            tied = ranks.tied()
            return tied[int(draw() * len(tied))]
        for _ in _TRIES:
            at = int(draw() * count)
            if not ranks[at]:  # an idle backend: none has a lower rank
                return at
    least = min(ranks)
    for _ in _TRIES:  # with many free slots, many ranks are equal, and the first draw usually hits one
        at = int(draw() * count)
        if ranks[at] == least:
            return at
    at = ranks.index(least)
    for _ in range(int(draw() * ranks.count(least))):
        at = ranks.index(least, at + 1)
    return at


def _tied(ranks: Sequence[float]) -> Sequence[int]:
    """The positions of the lowest rank."""
    if isinstance(ranks, RankTable):
        return ranks.tied()
    least = min(ranks)
    return [at for at, rank in enumerate(ranks) if rank == least]


def _drawn_by_shares(tied: Sequence[int], costs: Sequence[float], draw: Callable[[], float]) -> int:
    rest = draw() * sum(1 / costs[at] for at in tied)
    for at in tied:
        rest -= 1 / costs[at]
        if rest < 0:
            return at
    return tied[-1]
