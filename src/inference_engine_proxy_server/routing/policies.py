"""The policies that choose among backends, by name.

Most policies are a function that scores candidates for a request at a given time. ``least_requests``, the default, is
cheaper: it only takes the lowest rank of the rank table, which candidates keep up to date.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.routing.balancer import choose
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.choice import (
    CandidateView,
    Choice,
    Knowledge,
    Policy,
    PromptView,
    Scores,
    Scoring,
)
from inference_engine_proxy_server.routing.decisions import RANK_TERMS
from inference_engine_proxy_server.routing.expected_time.scoring import TERMS, expected_time
from inference_engine_proxy_server.routing.rendezvous import MAX_WEIGHT, weights

__all__ = ["LEAST_REQUESTS", "POLICIES", "LeastRequests", "PromptPolicy", "power_of_two", "rendezvous", "round_robin"]

# A backend that holds the beginning of the prompt is considered even if it exceeds its limit by fewer requests than
# this. Together with the default BACKEND_QUEUE_ALLOWANCE, this allows as many waiting requests as the default
# MAX_ALLOWED_DEFERRED.
_MAY_QUEUE = 2
_FULL = math.inf  # rank of a candidate that takes no request


class LeastRequests:
    """The backend with the fewest requests, weighted; see :mod:`~.balancer`."""

    name = "least_requests"
    terms = RANK_TERMS
    most_wins = False
    reads_prompts = False
    learns = False

    def __repr__(self) -> str:
        return "<LeastRequests>"

    def choose(self, candidates: CandidateSet, prompt: Prompt | None, knowledge: Knowledge) -> Choice | None:  # noqa: ARG002
        """The candidate with the lowest finite rank, see :meth:`Policy.choose`."""
        ranks = candidates.ranks
        if not ranks:
            return None
        at = choose(ranks, candidates.uneven_costs)
        considered = candidates.candidates
        return Choice(considered[at], self, considered) if ranks[at] < _FULL else None


LEAST_REQUESTS = LeastRequests()


@dataclass(frozen=True, slots=True)
class PromptPolicy:
    """A policy that scores each candidate for a prompt.

    Attributes:
        name: its name in the settings.
        scoring: scores the candidates.
        terms: names of the numbers in a row; the last one is compared.
        most_wins: whether the highest number is best, not the lowest.
        learns: whether ``scoring`` uses what was learned from earlier requests, besides ``work.sent_at``.
    """

    name: str
    scoring: Scoring
    terms: tuple[str, ...]
    most_wins: bool = False
    learns: bool = False

    @property
    def reads_prompts(self) -> bool:
        """Always true."""
        return True

    def choose(self, candidates: CandidateSet, prompt: Prompt | None, knowledge: Knowledge) -> Choice | None:
        """The candidate with the best score; a last choice only if there is no other. See :meth:`Policy.choose`."""
        if prompt is None:
            return LEAST_REQUESTS.choose(candidates, prompt, knowledge)
        considered = candidates.preferred(of_all_tiers=self.learns)
        if not considered:
            return None
        view = knowledge.view(prompt) if self.learns else PromptView(prompt)
        if self.learns:
            if view.held:
                considered += [one for one in candidates.slightly_full(_MAY_QUEUE) if one.number in view.held]
            considered = knowledge.shortlist(considered, view)
        scores = self.scoring(considered, view, knowledge.clock())
        return Choice(considered[scores.at], self, considered, scores.rows, view)


def power_of_two(candidates: Sequence[CandidateView], request: PromptView, now: float) -> Scores:
    """The less loaded of two random candidates (Mitzenmacher, 1996)."""
    del request, now
    pair = random.sample(range(len(candidates)), min(2, len(candidates)))
    rows: list[tuple[float, ...]] = [()] * len(candidates)
    for at in pair:
        rows[at] = (candidates[at].load.total * candidates[at].cost,)
    return Scores(min(pair, key=rows.__getitem__), rows)


def round_robin(candidates: Sequence[CandidateView], request: PromptView, now: float) -> Scores:
    """The candidate that got its last request longest ago."""
    del request
    rows = [(now - sent_at if (sent_at := one.work.sent_at) else math.inf,) for one in candidates]
    return Scores(rows.index(max(rows)), rows)


def rendezvous(candidates: Sequence[CandidateView], request: PromptView, now: float) -> Scores:
    """Always the same candidate for a session, or else for prompts that begin alike; see :mod:`~.rendezvous`."""
    del now
    found = weights(candidates, request.prompt.placement_key)
    return Scores(found.index(max(found)), [(weight / MAX_WEIGHT,) for weight in found])


_ALL: tuple[Policy, ...] = (
    LEAST_REQUESTS,
    PromptPolicy("expected_time", expected_time, TERMS, learns=True),
    PromptPolicy("power_of_two", power_of_two, ("load",)),
    PromptPolicy("round_robin", round_robin, ("idle_seconds",), most_wins=True),
    PromptPolicy("rendezvous", rendezvous, ("weight",), most_wins=True),
)

POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in _ALL}
"""All policies by their names in the settings."""
