"""llm-d's default since August 2026: sticky until saturated.

Sources: ``prefix-cache-affinity-filter`` and ``token-load-scorer`` of llm-d/llm-d-router, read in November 2026, with
their built-in defaults, which are calibrated for the machine of the simulated vLLM. The real index has 31,250
blocks per backend, seven times what that machine can cache; this model never evicts.
"""

from __future__ import annotations

from simulation.batching import Usage
from simulation.policies.base import Policy, ReplicaView, Site
from simulation.requests import Prompt, Request, Segment

__all__ = ["StickyUntilSaturated"]

_BLOCK = 64  # tokens
_INDEXED_TOKENS = 131_072
_AFFINITY_THRESHOLD = 0.8
_EXPLORATION_PROBABILITY = 0.01
_MOST_PENALTY_SECONDS = 18.0  # maxTTFTPenaltyMs
_PEAK_PREFILL_TOKENS_A_SECOND = 15_928


class _Node:
    __slots__ = ("backends", "children")

    def __init__(self) -> None:
        self.children: dict[Segment, _Node] = {}
        self.backends: set[int] = set()


class StickyUntilSaturated(Policy):
    """Prefers backends with 80 % of the prompt cached, unless the best of them would begin over 18 s later."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._root = _Node()
        self._unread = [0.0] * len(site.view.is_up)  # uncached prompt tokens per backend, until the first token
        self._own: dict[int, float] = {}  # uncached prompt tokens by request

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        matched = self._match(request.prompt)
        available = view.available()
        tokens = request.prompt_tokens
        score = {backend: matched.get(backend, 0) / max(1, tokens // _BLOCK) for backend in available}
        candidates = self._filter(available, score)
        cost = {backend: self._unread[backend] + tokens * (1 - min(1.0, score[backend])) for backend in candidates}
        least = min(cost.values())
        chosen = self.random.choice([backend for backend in candidates if cost[backend] == least])
        self._own[request.number] = tokens * (1 - min(1.0, score[chosen]))
        self._insert(request.prompt, chosen)
        return chosen

    def sent(self, request: Request, backend: int, now: float) -> None:  # noqa: ARG002
        self._unread[backend] += self._own[request.number]

    def lost(self, request: Request, backend: int, now: float) -> None:  # noqa: ARG002
        self._unread[backend] -= self._own.pop(request.number, 0.0)

    def first_token(self, request: Request, backend: int, now: float) -> None:  # noqa: ARG002
        self._unread[backend] -= self._own.pop(request.number, 0.0)

    def done(self, request: Request, backend: int, usage: Usage, now: float) -> None:  # noqa: ARG002
        self._unread[backend] -= self._own.pop(request.number, 0.0)

    def _filter(self, available: list[int], score: dict[int, float]) -> list[int]:
        if self.random.random() < _EXPLORATION_PROBABILITY:
            return available
        sticky = [backend for backend in available if score[backend] >= _AFFINITY_THRESHOLD]
        others = [backend for backend in available if score[backend] < _AFFINITY_THRESHOLD]
        if not sticky:
            return available
        if others:
            penalty = min(self._unread[backend] for backend in sticky) - min(
                self._unread[backend] for backend in others
            )
            if penalty / _PEAK_PREFILL_TOKENS_A_SECOND > _MOST_PENALTY_SECONDS:
                return available
        return sticky

    def _match(self, prompt: Prompt) -> dict[int, int]:
        """Number of leading blocks of ``prompt`` by backend, for backends that got any."""
        blocks: dict[int, int] = {}
        node, tokens = self._root, 0
        for segment in prompt:
            child = node.children.get(segment)
            if child is None or tokens >= _INDEXED_TOKENS:
                break
            tokens += segment.tokens
            for backend in child.backends:
                blocks[backend] = tokens // _BLOCK
            node = child
        return blocks

    def _insert(self, prompt: Prompt, backend: int) -> None:
        node = self._root
        for segment in prompt:
            node = node.children.setdefault(segment, _Node())
            node.backends.add(backend)
