"""The backends that serve a model, in a form that finds the best of many at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.routing.balancer import choose

__all__ = ["CandidateSet"]


class CandidateSet:
    """Live backends that serve the same models.

    Args:
        backends: each once.
        contexts: of each one, in tokens, infinite if it does not tell; ``None``: all are alike.

    Attributes:
        backends, contexts: those.
        ranks: what each one's load weighs, by position; infinite while it takes no request. The backends themselves
            keep this up to date: going through all of them for every request would cost more than it.
        costs: what one request weighs on each.
    """

    __slots__ = ("_costs_if_uneven", "backends", "contexts", "costs", "ranks")

    def __init__(self, backends: tuple[Backend, ...], contexts: Sequence[float] | None) -> None:
        self.backends = backends
        self.contexts = contexts
        self.ranks = [math.inf] * len(backends)
        self.costs = [backend.cost for backend in backends]
        self._costs_if_uneven: list[float] | None
        self._compare_costs()
        for at, backend in enumerate(backends):
            backend.take_seat(self, at)

    def best(self) -> Backend | None:
        """The one for the next request; ``None``: all are full, or out of rotation."""
        ranks = self.ranks
        if not ranks:
            return None
        at = choose(ranks, self._costs_if_uneven)
        return None if ranks[at] == math.inf else self.backends[at]

    def note_cost(self, at: int, cost: float) -> None:
        """From now on one request weighs ``cost`` on the backend at this position."""
        if self.costs[at] != cost:
            self.costs[at] = cost
            self._compare_costs()

    def rerank(self) -> None:
        """Look at every backend anew: other workers have requests there, too, and tell nobody."""
        for backend in self.backends:
            backend.rerank()

    def _compare_costs(self) -> None:
        is_even = all(cost == self.costs[0] for cost in self.costs)
        self._costs_if_uneven = None if is_even else self.costs
