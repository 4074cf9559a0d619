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


def choose_backend(candidates: Sequence[C], draw: Callable[[], float] = random.random) -> C:
    """The candidate with the lowest load; those whose load is stale come after all others; ties fall at random.

    Args:
        candidates: at least one.
        draw: a random number from 0 to below 1.
    """
    best = candidates[0]
    ties: list[C] = []
    for candidate in candidates[1:]:
        if candidate.load_is_stale == best.load_is_stale:
            if candidate.load == best.load:
                ties.append(candidate)
            elif candidate.load < best.load:
                best, ties = candidate, []
        elif best.load_is_stale:
            best, ties = candidate, []
    return (best, *ties)[int(draw() * (len(ties) + 1))] if ties else best
