"""Candidates for a request, and a list of their ranks, in which the lowest is found without a Python loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inference_engine_proxy_server.routing.balancer import LAST_CHOICE, TIER
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.rank_table import RankTable

__all__ = ["CandidateSet"]

_MANY = 64  # candidates; if more of them are busy, a scan for the lowest rank costs more than a table


class CandidateSet:
    """Candidates, and their rank table.

    Args:
        candidates: without duplicates.
        ranks: rank of each by its load; infinite for one that takes no request.
        contexts: context of each in tokens, infinite when unknown; ``None`` when all are equal.
        handicaps: what the rank of each contains because its model is not awake; ``None`` when all are equal.

    Attributes:
        costs: weight of one request on each.
        uneven_costs: ``costs``; ``None`` when all are equal.
    """

    __slots__ = ("_positions", "candidates", "contexts", "costs", "handicaps", "ranks", "uneven_costs")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        ranks: list[float],
        contexts: Sequence[float] | None = None,
        handicaps: Sequence[float] | None = None,
    ) -> None:
        self.candidates = candidates
        self.ranks = ranks
        self.contexts = contexts
        self.handicaps = handicaps
        self.costs = [candidate.cost for candidate in candidates]
        self.uneven_costs: list[float] | None
        self._positions: dict[int, int] | None = None  # by ``url_key``; made when it is needed
        self._compare_costs()

    @classmethod
    def kept_up_to_date(
        cls,
        candidates: Sequence[Candidate],
        contexts: Sequence[float] | None,
        handicaps: Sequence[float] | None = None,
    ) -> CandidateSet:
        """A set whose candidates update its ranks and costs, which is cheaper than a loop for each request."""
        ranks = [math.inf] * len(candidates)
        made = cls(candidates, RankTable(ranks) if len(ranks) > _MANY else ranks, contexts, handicaps)
        for at, candidate in enumerate(candidates):
            candidate.join(made, at, handicaps[at] if handicaps else 0.0)
        return made

    def __repr__(self) -> str:
        ranks = {one.backend.url: rank for one, rank in zip(self.candidates, self.ranks, strict=True)}
        return f"<CandidateSet {ranks}>"

    def free(self) -> list[Candidate]:
        """The candidates that take a request now."""
        return [one for one, rank in zip(self.candidates, self.ranks, strict=True) if rank < math.inf]

    def preferred(self, *, of_all_tiers: bool = False) -> list[Candidate]:
        """The candidates that take a request now; last choices and cold ones only if there are no others.

        Args:
            of_all_tiers: do not prefer lower tiers.
        """
        if self.ranks and max(self.ranks) < LAST_CHOICE:  # usually, nothing tells them apart
            return list(self.candidates)
        ranks = [rank % TIER for rank in self.ranks] if of_all_tiers else self.ranks  # NaN for an infinite rank
        best = min((rank for rank in ranks if rank < math.inf), default=math.inf) // LAST_CHOICE
        return [one for one, rank in zip(self.candidates, ranks, strict=True) if rank // LAST_CHOICE == best]

    def slightly_full(self, requests: float) -> list[Candidate]:
        """The awake candidates in rotation, except last choices, that exceed their limit by less than ``requests``."""
        if math.inf not in self.ranks:
            return []
        handicaps = self.handicaps or [0.0] * len(self.candidates)
        return [
            one
            for one, handicap in zip(self.candidates, handicaps, strict=True)
            if one.backend.takes_requests
            and one.load.limit <= one.load.total < one.load.limit + requests
            and not handicap
            and not one.backend.is_last_choice
            and one.is_admitted
        ]

    def position(self, url_key: int) -> int | None:
        """The position of the candidate with this :attr:`~.candidate.Candidate.url_key`; ``None`` if there is none."""
        if self._positions is None:
            self._positions = {one.url_key: at for at, one in enumerate(self.candidates)}
        return self._positions.get(url_key)

    def handicap_of(self, candidate: Candidate) -> float:
        """What the rank of ``candidate`` contains because its model is not awake; 0 for one of another set."""
        if self.handicaps is None or candidate not in self.candidates:
            return 0.0
        return self.handicaps[self.candidates.index(candidate)]

    def set_cost(self, at: int, cost: float) -> None:
        """Set the weight of one request on the candidate at this position."""
        if self.costs[at] != cost:
            self.costs[at] = cost
            self._compare_costs()

    def recount(self) -> None:
        """Update all ranks: other workers change the loads without notice."""
        for candidate in self.candidates:
            candidate.recount()

    def _compare_costs(self) -> None:
        is_even = all(cost == self.costs[0] for cost in self.costs)
        self.uneven_costs = None if is_even else self.costs
