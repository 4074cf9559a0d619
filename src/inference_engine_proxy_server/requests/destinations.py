"""Where requests go, by their methods and paths, and by whether they name their conversations."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from enum import Enum
from functools import lru_cache

__all__ = ["ANSWERED_HERE", "Destination", "Destinations"]

# What engines answer beside their work, without a slot (llama.cpp) or a place in the schedule (vLLM).
_LIGHT_PATHS = frozenset(
    prefix + path
    for prefix in ("", "/v1")
    for path in (
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/messages/count_tokens",
        "/streams/lookup",
        "/chat/completions/control",
    )
)
# Below these stands the name of something that one backend has; but for what engines serve there under fixed names.
_NAMED = re.compile(
    r"(?:/v1)?/(?:stream(?:/[^/]+)?"
    r"|(?:responses|chat/completions)/(?!(?:compact|input_tokens|control|render|batch)(?:/|$))[^/]+(?:/.*)?)"
)
_RESPONSES = ("/responses", "/v1/responses")
_NAMES_CONVERSATION = re.compile(rb"(?:^|\n)x-conversation-id:", re.IGNORECASE)


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
    NAMED = "named"
    """As ``LIGHT``, but only the backend can answer that has what the path or the query names."""
    TIED = "tied"
    """As ``WORK``, but it may need what one backend has, or make what is asked for by a name later."""


ANSWERED_HERE = (Destination.OPERATORS, Destination.OWN)
"""No backend sees these."""


class Destinations:
    """All there are.

    Args:
        own_paths: those of this proxy's own endpoints.
        blocks: whether a method and a path are not passed on.
    """

    def __init__(self, own_paths: Collection[str], blocks: Callable[[str, str], bool]) -> None:
        self._own_paths = own_paths
        self._blocks = blocks
        self._by_path = lru_cache(maxsize=256)(self._find)  # for the usual few

    def of(self, method: str, path: str, fields: bytes = b"") -> Destination:
        """Where a request goes.

        Args:
            method, path: as sent; the path without the query.
            fields: lines of the header section, each ending in CRLF.
        """
        destination = self._by_path(method, path)
        if destination is Destination.WORK and _NAMES_CONVERSATION.search(fields):
            return Destination.TIED
        return destination

    def _find(self, method: str, path: str) -> Destination:
        is_reading = method in ("GET", "HEAD")
        if path == "/admin" or path.startswith("/admin/") or (path == "/metrics" and is_reading):
            return Destination.OPERATORS
        if is_reading and path in self._own_paths:
            return Destination.OWN
        if self._blocks(method, path):
            return Destination.BLOCKED
        if (is_reading or method in ("POST", "DELETE")) and _NAMED.fullmatch(path):
            return Destination.NAMED
        if method != "POST" or path in _LIGHT_PATHS:
            return Destination.LIGHT
        return Destination.TIED if path in _RESPONSES else Destination.WORK
