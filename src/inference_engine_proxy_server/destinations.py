"""Where requests go, by their methods and paths alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from functools import lru_cache

__all__ = ["ANSWERED_HERE", "Destination", "Destinations"]

# What engines answer beside their work, without a slot (llama.cpp) or a place in the schedule (vLLM).
_LIGHT_PATHS = frozenset(
    prefix + path
    for prefix in ("", "/v1")
    for path in ("/tokenize", "/detokenize", "/apply-template", "/messages/count_tokens")
)


class Destination(Enum):
    """What becomes of a request."""

    OPERATORS = "operators"
    """This proxy answers, to operators only."""
    OWN = "own"
    """This proxy answers."""
    BLOCKED = "blocked"
    """Nobody gets it."""
    LIGHT = "light"
    """A backend gets it, and answers beside its work."""
    WORK = "work"
    """A backend gets it, and works on it in one of the places that it has."""


ANSWERED_HERE = (Destination.OPERATORS, Destination.OWN)
"""No backend sees these."""


class Destinations:
    """All there are.

    Args:
        own_paths: those of this proxy's own endpoints.
        blocks: whether a method and a path are not passed on.
    """

    of: Callable[[str, str], Destination]
    """Where a request goes, by its method and path. What it says is kept for the usual few paths."""

    def __init__(self, own_paths: Collection[str], blocks: Callable[[str, str], bool]) -> None:
        self._own_paths = own_paths
        self._blocks = blocks
        self.of = lru_cache(maxsize=256)(self._find)

    def _find(self, method: str, path: str) -> Destination:
        is_reading = method in ("GET", "HEAD")
        if path == "/admin" or path.startswith("/admin/") or (path == "/metrics" and is_reading):
            return Destination.OPERATORS
        if is_reading and path in self._own_paths:
            return Destination.OWN
        if self._blocks(method, path):
            return Destination.BLOCKED
        return Destination.WORK if method == "POST" and path not in _LIGHT_PATHS else Destination.LIGHT
