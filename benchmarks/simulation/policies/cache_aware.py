"""``cache_aware`` of vllm-router 0.1 and of smg 1.13; vllm-router has an older version of smg's.

Sources: ``src/policies/cache_aware.rs`` of vllm-project/router and ``model_gateway/src/policies/cache_aware.rs`` of
smg-project/smg, read in November 2026; command-line defaults. They compare prompts as text, this model by segments,
which is equivalent here. Trees evict old entries above 64 MiB, which these traces do not reach.
"""

from __future__ import annotations

from simulation.policies.base import Policy, ReplicaView, Site
from simulation.requests import Prompt, Request, Segment

__all__ = ["Smg", "VllmRouter"]

_CACHE_THRESHOLD = 0.3
_BALANCE_ABS_THRESHOLD = 64
_BALANCE_REL_THRESHOLD = 1.5


class _Node:
    __slots__ = ("children", "tenants")

    def __init__(self) -> None:
        self.children: dict[Segment, _Node] = {}
        self.tenants: dict[int, None] = {}  # backends, in the order in which they first got the prefix


class _Tree:
    """Backends by prompt prefix."""

    def __init__(self) -> None:
        self._root = _Node()

    def match(self, prompt: Prompt) -> tuple[int, list[int]]:
        """Length of the longest known prefix in tokens, and the backends that got it."""
        node, tokens = self._root, 0
        for segment in prompt:
            child = node.children.get(segment)
            if child is None:
                break
            tokens += segment.tokens
            node = child
        return tokens, list(node.tenants)

    def insert(self, prompt: Prompt, backend: int) -> None:
        node = self._root
        for segment in prompt:
            node = node.children.setdefault(segment, _Node())
            node.tenants.setdefault(backend)


class VllmRouter(Policy):
    """The shortest queue if the fleet is imbalanced; else a backend that had over 30 % of the prompt as a prefix."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._tree = _Tree()

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        available = view.available()
        loads = [view.in_flight[backend] for backend in available]
        least, most = min(loads), max(loads)
        chosen = available[loads.index(least)]
        if most - least <= _BALANCE_ABS_THRESHOLD or most <= _BALANCE_REL_THRESHOLD * least:
            matched, tenants = self._tree.match(request.prompt)
            known = [tenant for tenant in tenants if tenant in available]
            if known and matched > _CACHE_THRESHOLD * request.prompt_tokens:
                chosen = known[0]
        self._tree.insert(request.prompt, chosen)
        return chosen


class Smg(Policy):
    """The least loaded backend with the prefix, unless its load exceeds 1.5 times the mean, and the mean plus 64."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._tree = _Tree()
        self._processed = [0] * len(site.view.is_up)

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        available = view.available()
        load = view.in_flight
        idlest = min(available, key=lambda backend: (load[backend], self._processed[backend], backend))
        mean = sum(load[backend] for backend in available) / len(available)
        matched, tenants = self._tree.match(request.prompt)
        known = [tenant for tenant in tenants if tenant in available]
        chosen = idlest
        if known and matched > _CACHE_THRESHOLD * request.prompt_tokens:
            least = min(load[tenant] for tenant in known)
            chosen = self.random.choice([tenant for tenant in known if load[tenant] == least])
            if least > mean * _BALANCE_REL_THRESHOLD and least > mean + _BALANCE_ABS_THRESHOLD:
                chosen = idlest
        self._tree.insert(request.prompt, chosen)
        self._processed[chosen] += 1
        return chosen
