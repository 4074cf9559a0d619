"""Which of several backends gets the next request. Pure: no clock, no state, no I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

__all__ = ["Candidate", "choose_backend"]


class Candidate(Protocol):
    """A backend that may take the request."""

    @property
    def load(self) -> float:
        """Requests it has now: ours, and those that others have sent it."""

    @property
    def load_is_stale(self) -> bool:
        """What others have sent it is no longer known, so ``load`` counts only ours."""


C = TypeVar("C", bound=Candidate)


def choose_backend(candidates: Sequence[C], draw: Callable[[int], int] = random.randrange) -> C:
    """The candidate with the lowest load; those whose load is stale come after all others; ties fall at random.

    Args:
        candidates: at least one.
        draw: a random number from 0 to below its argument.
    """
    best: list[C] = []
    best_rank: tuple[bool, float] | None = None
    for candidate in candidates:
        rank = (candidate.load_is_stale, candidate.load)
        if best_rank is None or rank < best_rank:
            best_rank = rank
            best = [candidate]
        elif rank == best_rank:
            best.append(candidate)
    return best[0] if len(best) == 1 else best[draw(len(best))]
