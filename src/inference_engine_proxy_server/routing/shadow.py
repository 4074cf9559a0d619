"""A shadow policy: it decides beside the active policy, and reports what would have been different.

It has candidates, a prefix index and speeds of its own, and learns from what really was sent and answered. So it knows
what it would know as the active policy, and changes nothing that the active one knows.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.choice import Choice, Policy, PromptView
from inference_engine_proxy_server.routing.decisions import KEPT_WARM, Decision, Ranked
from inference_engine_proxy_server.routing.expected_time.scoring import TERMS, expected_time
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.policies import LEAST_REQUESTS, POLICIES
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.routing.tracker import Tracker

__all__ = ["Expected", "Shadow", "ShadowCounts"]

_LEARNING = POLICIES["expected_time"]  # its knowledge and its estimates are used to compare any two policies
_HELD = TERMS.index("held_tokens")
_UNTIL_FIRST_TOKEN = tuple(map(TERMS.index, ("place", "before", "own")))


class Expected(NamedTuple):
    """Sums over requests of what is expected on the chosen backend.

    Attributes:
        read_tokens: tokens of the prompt that it has to read, because they are not in its cache.
        first_token_seconds: time to the first token.
    """

    read_tokens: float = 0.0
    first_token_seconds: float = 0.0

    def plus(self, prompt: Prompt, row: tuple[float, ...]) -> Expected:
        """These sums and one request; ``row``: the terms of ``expected_time`` for its backend."""
        return Expected(
            self.read_tokens + max(0.0, prompt.tokens - row[_HELD]),
            self.first_token_seconds + sum(row[at] for at in _UNTIL_FIRST_TOKEN),
        )


class ShadowCounts:
    """The comparison so far.

    Attributes:
        same, different: requests for which both policies chose the same backend, or different ones.
        active, shadow: what was expected of the backends that they chose.
    """

    __slots__ = ("active", "different", "same", "shadow")

    def __init__(self) -> None:
        self.same = self.different = 0
        self.active = self.shadow = Expected()


class Shadow(Placement):
    """Decides by a policy that is not in use.

    Args:
        fleet: the fleet.
        policy: the shadow policy.
        index_bytes: memory for its prefix index.
        default_model, tier_penalty_seconds: as of :class:`Placement`.

    Attributes:
        counts: the comparison with the active policy.
        shadow_policy: the policy.
    """

    def __init__(
        self,
        fleet: Fleet,
        policy: Policy,
        index_bytes: int,
        *,
        default_model: str | None = None,
        tier_penalty_seconds: float = 0.0,
    ) -> None:
        router = PromptRouter(ModelPolicies(_LEARNING, {}), index_bytes, fleet.clock)
        super().__init__(
            fleet,
            router,
            default_model=default_model,
            tier_penalty_seconds=tier_penalty_seconds,
        )
        self.counts = ShadowCounts()
        self.shadow_policy = policy

    def compare(
        self, requirements: Requirements, prompt: Prompt, excluded: Collection[Backend], active: Choice
    ) -> Decision | None:
        """Decide about a request for which the active policy has made the choice ``active``, before it is leased.

        Returns:
            The shadow's decision; ``None`` if it has none, because the fleet has just changed.
        """
        view = self.router.view(prompt)
        twin = self._twin(active.candidate.backend, requirements.model)
        found = self._found(requirements)
        # Leases of the active candidates change the loads without notice, so kept ranks would be wrong.
        ranked = self._ranked(found, self._eligible(found, requirements, excluded), requirements)
        choice = self._decide(ranked, prompt, view)
        if twin is None or choice is None:
            return None
        counts = self.counts
        pair = [twin] if choice.candidate is twin else [twin, choice.candidate]
        rows = expected_time(pair, view, self.router.clock()).rows
        if len(pair) == 1:
            counts.same += 1
        else:
            counts.different += 1
        counts.active = counts.active.plus(prompt, rows[0])
        counts.shadow = counts.shadow.plus(prompt, rows[-1])
        return Decision(choice.rule, choice.considered, choice.rows or (), choice.candidate)

    def learn(self, prompt: Prompt, model: str | None, backend: Backend) -> Tracker | None:
        """Follow a request that is about to be sent to ``backend``; ``None`` if that has left the fleet."""
        twin = self._twin(backend, model)
        return None if twin is None else self.router.track(_LEARNING, prompt, twin, None)

    def _twin(self, backend: Backend, model: str | None) -> Candidate | None:
        """The shadow's own candidate for ``model`` on ``backend``."""
        whole = self._registry.get(backend)
        return None if whole is None else self._registry.of_model(whole, model)

    def _decide(self, found: CandidateSet, prompt: Prompt, view: PromptView) -> Choice | None:
        policy = self.shadow_policy
        choice = _kept_warm(found, view) if policy is LEAST_REQUESTS else None
        choice = choice or policy.choose(found, prompt, self.router)
        if choice is not None and choice.rows is None:
            choice.rows = Ranked(found.ranks, found.costs)
        return choice


def _kept_warm(found: CandidateSet, view: PromptView) -> Choice | None:
    """What ``least_requests`` chooses if the backend of the previous turn is among those with the fewest requests."""
    least = min(found.ranks, default=math.inf)
    for one, rank in zip(found.candidates, found.ranks, strict=True):
        if one.number == view.last_at and rank == least < math.inf:
            return Choice(one, KEPT_WARM, found.candidates)
    return None
