"""Candidates for a request, and a list of their ranks, in which the lowest is found without a Python loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inference_engine_proxy_server.routing.candidate import Candidate

__all__ = ["CandidateSet"]


class CandidateSet:
    """Candidates, and their rank table.

    Args:
        candidates: without duplicates.
        ranks: rank of each by its load; infinite for one that takes no request.
        contexts: context of each in tokens, infinite when unknown; ``None`` when all are equal.

    Attributes:
        costs: weight of one request on each.
        uneven_costs: ``costs``; ``None`` when all are equal.
    """

    __slots__ = ("candidates", "contexts", "costs", "ranks", "uneven_costs")

    def __init__(
        self, candidates: Sequence[Candidate], ranks: list[float], contexts: Sequence[float] | None = None
    ) -> None:
        self.candidates = candidates
        self.ranks = ranks
        self.contexts = contexts
        self.costs = [candidate.cost for candidate in candidates]
        self.uneven_costs: list[float] | None
        self._compare_costs()

    @classmethod
    def kept_up_to_date(cls, candidates: Sequence[Candidate], contexts: Sequence[float] | None) -> CandidateSet:
        """A set whose candidates update its ranks and costs, which is cheaper than a loop for each request."""
        made = cls(candidates, [math.inf] * len(candidates), contexts)
        for at, candidate in enumerate(candidates):
            candidate.join(made, at)
        return made

    def __repr__(self) -> str:
        ranks = {one.backend.url: rank for one, rank in zip(self.candidates, self.ranks, strict=True)}
        return f"<CandidateSet {ranks}>"

    def free(self) -> list[Candidate]:
        """The candidates that take a request now."""
        return [one for one, rank in zip(self.candidates, self.ranks, strict=True) if rank < math.inf]

    def slightly_full(self, requests: float) -> list[Candidate]:
        """The candidates in rotation that exceed their limit by less than ``requests``."""
        return [
            one
            for one in self.candidates
            if one.backend.takes_requests and one.load.limit <= one.load.total < one.load.limit + requests
        ]

    def set_cost(self, at: int, cost: float) -> None:
        """Set the weight of one request on the candidate at this position."""
        if self.costs[at] != cost:
            self.costs[at] = cost
            self._compare_costs()

    def recount(self) -> None:
        """Update all ranks: other workers change the loads without notice."""
        for candidate in self.candidates:
            candidate.load.count_others()
            candidate.rerank()

    def _compare_costs(self) -> None:
        is_even = all(cost == self.costs[0] for cost in self.costs)
        self.uneven_costs = None if is_even else self.costs
