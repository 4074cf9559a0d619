"""The backends that serve a model, in a form that finds the best of many at once."""

from __future__ import annotations

import math

from inference_engine_proxy_server.core.backend import Backend
from inference_engine_proxy_server.core.balancer import choose

__all__ = ["Servers"]


class Servers:
    """Live backends that serve the same models.

    Args:
        backends: each once.

    Attributes:
        backends: those.
        ranks: what each one's load weighs, by position; infinite while it takes no request. The backends themselves
            keep this and ``costs`` up to date: going through all of them for every request would cost more than it.
        costs: what one request weighs on each.
    """

    __slots__ = ("backends", "costs", "ranks")

    def __init__(self, backends: tuple[Backend, ...]) -> None:
        self.backends = backends
        self.ranks = [math.inf] * len(backends)
        self.costs = [1.0] * len(backends)
        for at, backend in enumerate(backends):
            backend.take_seat(self.ranks, self.costs, at)

    def best(self) -> Backend | None:
        """The one for the next request; ``None``: all are full, or out of rotation."""
        ranks = self.ranks
        if not ranks:
            return None
        at = choose(ranks, self.costs)
        return None if ranks[at] == math.inf else self.backends[at]

    def rerank(self) -> None:
        """Look at every backend anew: other workers have requests there, too, and tell nobody."""
        for backend in self.backends:
            backend.rerank()
