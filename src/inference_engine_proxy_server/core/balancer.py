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
    def cost(self) -> float:
        """What one request there weighs: twice as much on a backend that should get half as many."""

    @property
    def is_last_choice(self) -> bool:
        """Little is known of it, or nothing good, so all others go first."""


C = TypeVar("C", bound=Candidate)


def choose_backend(candidates: Sequence[C], draw: Callable[[], float] = random.random) -> C:
    """The candidate with the lowest load for its share; last choices come last; ties fall at random, by shares.

    Args:
        candidates: at least one.
        draw: a random number from 0 to below 1.
    """
    best = candidates[0]
    least = best.load * best.cost
    ties: list[C] = []
    for candidate in candidates[1:]:
        weighed = candidate.load * candidate.cost
        if candidate.is_last_choice == best.is_last_choice:
            if weighed == least:
                ties.append(candidate)
            elif weighed < least:
                best, least, ties = candidate, weighed, []
        elif best.is_last_choice:
            best, least, ties = candidate, weighed, []
    return _drawn((best, *ties), draw) if ties else best


def _drawn(ties: Sequence[C], draw: Callable[[], float]) -> C:
    rest = draw() * sum(1 / candidate.cost for candidate in ties)
    for candidate in ties:
        rest -= 1 / candidate.cost
        if rest < 0:
            return candidate
    return ties[-1]
