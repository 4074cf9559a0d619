"""Classifies requests by method, path and headers: answered here, blocked, or passed on to a backend."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from enum import Enum
from functools import lru_cache

from inference_engine_proxy_server.requests.headers import names_conversation

__all__ = ["ANSWERED_HERE", "Destination", "Destinations"]

# Engines answer these outside their request queue: without a slot (llama.cpp) or a scheduling step (vLLM).
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
# Paths that name a backend-local resource, except the fixed names that engines serve below the same prefixes.
_NAMED = re.compile(
    r"(?:/v1)?/(?:stream(?:/[^/]+)?"
    r"|(?:responses|chat/completions)/(?!(?:compact|input_tokens|control|render|batch)(?:/|$))[^/]+(?:/.*)?)"
)
_DOUBLE_SLASH = re.compile("//+v1/|/v1//")
_RESPONSES = ("/responses", "/v1/responses")


class Destination(Enum):
    """Who answers a request."""

    OPERATORS = "operators"
    """This proxy, for operators only."""
    OWN = "own"
    """This proxy."""
    DOUBLE_SLASH = "double slash"
    """Nobody: the client has joined its base URL and a path wrongly."""
    BLOCKED = "blocked"
    """Nobody: the request is refused."""
    LIGHT = "light"
    """A backend, without using one of its slots."""
    WORK = "work"
    """A backend, in one of its slots."""
    NAMED = "named"
    """As ``LIGHT``, but only the backend that holds the resource in the path or query."""
    TIED = "tied"
    """As ``WORK``, but the request may need a backend-local resource, or create one that later requests name."""


ANSWERED_HERE = (Destination.OPERATORS, Destination.OWN)
"""Destinations that no backend sees."""


class Destinations:
    """Finds the destination of a request.

    Args:
        own_paths: paths of this proxy's own endpoints.
        blocks: whether a method and a path are blocked.
    """

    def __init__(self, own_paths: Collection[str], blocks: Callable[[str, str], bool]) -> None:
        self._own_paths = own_paths
        self._blocks = blocks
        self._by_path = lru_cache(maxsize=256)(self._find)  # clients use few paths

    def of(self, method: str, path: str, fields: bytes = b"") -> Destination:
        """The destination of a request.

        Args:
            method, path: as sent; the path without the query.
            fields: header lines, each ending in CRLF.
        """
        destination = self._by_path(method, path)
        if destination is Destination.WORK and names_conversation(fields):
            return Destination.TIED
        return destination

    def _find(self, method: str, path: str) -> Destination:
        is_reading = method in ("GET", "HEAD")
        if path == "/admin" or path.startswith("/admin/") or (path == "/metrics" and is_reading):
            return Destination.OPERATORS
        if is_reading and (path in self._own_paths or path.rstrip("/") in self._own_paths):
            return Destination.OWN  # its app redirects a path with a trailing slash
        if self._blocks(method, path):
            return Destination.BLOCKED
        if _DOUBLE_SLASH.match(path):
            return Destination.DOUBLE_SLASH
        if (is_reading or method in ("POST", "DELETE")) and _NAMED.fullmatch(path):
            return Destination.NAMED
        if method != "POST" or path in _LIGHT_PATHS:
            return Destination.LIGHT
        return Destination.TIED if path in _RESPONSES else Destination.WORK
