"""The types of policies: their inputs and their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.decisions import Decision, Row, Rule
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingWork
from inference_engine_proxy_server.routing.expected_time.prefix_index import Lookup

__all__ = ["CandidateView", "Choice", "Knowledge", "Policy", "PromptView", "Scores", "Scoring"]


class CandidateView(Protocol):
    """The part of a :class:`~.candidate.Candidate` that a scoring function reads."""

    @property
    def number(self) -> int:
        """The number of the backend in the prefix index."""

    @property
    def url_key(self) -> int:
        """64-bit hash of the backend's URL, the same in all replicas of the proxy."""

    @property
    def work(self) -> PendingWork:
        """Its pending work: prompts and answers of requests from this proxy."""

    @property
    def load(self) -> BackendLoad:
        """Its requests."""

    @property
    def cost(self) -> float:
        """The weight of one request there."""

    @property
    def tier_seconds(self) -> float:
        """How much longer a request waits for a backend of the first tier than for this one."""


class PromptView(NamedTuple):
    """The part of a request that a scoring function reads.

    Attributes:
        prompt: its prompt.
        held: bytes of the prompt that each backend holds in its cache, by the backend's number; only if above 0.
        last_at: number of the backend that had the conversation's previous turn; -1 when unknown.
        goes_on: of the requests with the same beginning, the share that continue a conversation.
        lookup: the prefix lookup that ``held`` comes from; ``None`` when there was none.
        foreign_share: the usual share of foreign requests among all; 0 without them.
    """

    prompt: Prompt
    held: Mapping[int, int] = {}
    last_at: int = -1
    goes_on: float = 0.0
    lookup: Lookup | None = None
    foreign_share: float = 0.0


class Scores(NamedTuple):
    """The result of a scoring function.

    Attributes:
        at: position of the best candidate.
        rows: values of the policy's terms for each candidate; empty for a candidate that was not considered.
    """

    at: int
    rows: Sequence[Row]


Scoring = Callable[[Sequence[CandidateView], PromptView, float], Scores]
"""Scores candidates (at least one) for a request; the last argument is a reading of the clock."""


class Choice(msgspec.Struct):
    """The chosen candidate for a request, with the reasons.

    Attributes:
        candidate: the chosen one.
        rule: the policy, or other rule, that chose it.
        considered: the candidates that were compared.
        rows: values of the rule's terms for each of them. ``None`` stands for their ranks by load, which are copied
            only if decisions are recorded.
        view: the policy's view of the request; ``None`` if it read no prompt.
        decision: a record of the choice; ``None`` if decisions are not recorded.
    """

    candidate: Candidate
    rule: Rule
    considered: Sequence[Candidate]
    rows: Iterable[Row] | None = None
    view: PromptView | None = None
    decision: Decision | None = None

    def __repr__(self) -> str:
        return f"<Choice by {self.rule.name} among {len(self.considered)}: {self.candidate!r}>"


class Knowledge(Protocol):
    """What policies know besides the candidates; see :class:`~.prompt_router.PromptRouter`."""

    @property
    def clock(self) -> Callable[[], float]:
        """A monotonic clock, in seconds."""

    def view(self, prompt: Prompt) -> PromptView:
        """The knowledge about ``prompt``."""

    def shortlist(self, candidates: list[Candidate], view: PromptView) -> list[Candidate]:
        """The ``candidates`` that are worth scoring."""


class Policy(Rule, Protocol):
    """Chooses one of several candidates."""

    @property
    def reads_prompts(self) -> bool:
        """Whether the choice depends on the prompt, so that it must be read."""

    @property
    def learns(self) -> bool:
        """Whether the choice depends on what was learned from earlier requests: caches, conversations, pending work."""

    def choose(self, candidates: CandidateSet, prompt: Prompt | None, knowledge: Knowledge) -> Choice | None:
        """The candidate for a request; ``None`` when no candidate takes a request now.

        Args:
            candidates: candidates with their ranks.
            prompt: the request's prompt; ``None`` if it was not read.
            knowledge: what was learned from earlier requests.
        """
