"""Classifies requests by method, path and headers: answered here, blocked, or forwarded to a backend."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from enum import Enum
from functools import lru_cache

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.headers import names_conversation

__all__ = [
    "ANSWERED_HERE",
    "IN_A_SLOT",
    "Destination",
    "Destinations",
    "is_about_models",
    "is_announcement",
    "is_dashboard",
    "is_named",
    "is_response",
    "is_usage",
    "is_web_ui",
    "streams_events",
    "writes_text",
]

# Engines answer these outside their request queue: without a slot (llama.cpp) or a scheduling step (vLLM). "render"
# applies the template and tokenizes.
_LIGHT_PATHS = frozenset(
    prefix + path
    for prefix in ("", "/v1")
    for path in (
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/messages/count_tokens",
        "/chat/completions/input_tokens",
        "/responses/input_tokens",
        "/chat/completions/render",
        "/completions/render",
        "/streams/lookup",
        "/chat/completions/control",
    )
) | {
    "/api/show",  # Ollama's
    "/api/extra/tokencount", "/api/extra/tokenize", "/api/extra/detokenize",  # KoboldCpp's and TabbyAPI's
    "/v1/token/encode", "/v1/token/decode",  # TabbyAPI's
}  # fmt: skip
# Paths that name a backend-local resource, except the fixed names that engines serve below the same prefixes.
_NAMED = re.compile(
    r"(?:/v1)?/(?:stream(?:/[^/]+)?"
    r"|(?:responses|chat/completions)/(?!(?:compact|input_tokens|control|render|batch)(?:/|$))[^/]+(?:/.*)?)"
)
# Releases of llama.cpp add and rename files of the web UI, so those outside its folders are known by their type.
_FILE = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_WEB_UI = re.compile(
    rf"/(?:{_FILE}\.(?:html|js|css|svg|ico|png|webmanifest)|(?:build|manifest)\.json"
    rf"|(?:_app|recommended-mcp)/(?:{_FILE}/)*{_FILE})"
)
# A base URL that ends with a slash, joined with a path that begins with one. No engine serves such a path.
_DOUBLED_SLASH = re.compile(r"//+v1(?:/.*)?|/v1//.*")
_TEXTLESS_PATHS = frozenset(
    prefix + path
    for prefix in ("", "/v1")
    for path in (
        "/embeddings", "/embedding", "/rerank", "/reranking", "/score", "/classify", "/pooling", "/moderations",
        "/audio/speech", "/images/generations", "/images/edits", "/images/variations",
    )
) | {
    "/v2/embed", "/v2/rerank",  # Cohere's API
    "/api/embed", "/api/embeddings",  # Ollama's
    "/embed", "/embed_all", "/embed_sparse", "/predict", "/similarity",  # text-embeddings-inference's
}  # fmt: skip
_RESPONSES = ("/responses", "/v1/responses")
# Streams of other paths may have another format, such as Ollama's lines of JSON.
_EVENT_STREAMS = frozenset(
    prefix + path
    for prefix in ("", "/v1")
    for path in ("/chat/completions", "/completions", "/completion", "/infill", "/messages", "/responses")
)


class Destination(Enum):
    """Where a request is answered."""

    OPERATORS = "operators"
    """In this proxy, for operators; of some paths, others see a part."""
    OWN = "own"
    """In this proxy."""
    BLOCKED = "blocked"
    """Nowhere: the request is rejected."""
    MISJOINED = "misjoined"
    """Nowhere: the path has a doubled slash before or after ``/v1``, so the client's base URL is wrong."""
    LIGHT = "light"
    """On a backend, without using one of its slots."""
    WORK = "work"
    """On a backend, in one of its slots."""
    NAMED = "named"
    """Like ``LIGHT``, but only on the backend that holds the resource in the path or query."""
    TIED = "tied"
    """Like ``WORK``, but the request may need a backend-local resource, or create one that later requests name."""
    WEBSOCKET = "websocket"
    """Like ``WORK``, but in place of a reply a WebSocket opens."""


ANSWERED_HERE = (Destination.OPERATORS, Destination.OWN)
"""Destinations of requests that the proxy answers itself."""

IN_A_SLOT = frozenset({Destination.WORK, Destination.TIED})
"""Destinations of requests that take a slot of a backend."""


def is_named(path: str) -> bool:
    """Whether a path names a backend-local resource."""
    return _NAMED.fullmatch(path) is not None


def is_response(path: str) -> bool:
    """Whether a request to this path creates a response."""
    return path in _RESPONSES


def streams_events(path: str) -> bool:
    """Whether the streamed replies of this path are server-sent events on every known engine."""
    return path in _EVENT_STREAMS


def writes_text(path: str) -> bool:
    """Whether a model may write text in the replies of this path; its replies are not vectors, scores or media."""
    return path not in _TEXTLESS_PATHS


def is_about_models(path: str) -> bool:
    """Whether ``GET`` of this path asks for the list of models, or for one of them."""
    return path in ("/v1/models", "/models") or path.startswith(("/v1/models/", "/models/"))


def is_announcement(path: str) -> bool:
    """Whether a request to this path announces a backend, or withdraws it."""
    return path == "/admin/announced" or path.startswith("/admin/announced/")


def is_usage(path: str) -> bool:
    """Whether ``GET`` of this path asks for the usage of a key."""
    return path.removesuffix("/") == "/v1/usage"


def is_dashboard(path: str) -> bool:
    """Whether ``GET`` of this path asks for the state that the dashboard shows, of which operators see all."""
    return path.startswith("/dashboard/")


def is_web_ui(method: str, path: str) -> bool:
    """Whether the request asks for a file of llama.cpp's web UI, which llama-server also serves without a key."""
    return method in ("GET", "HEAD") and _WEB_UI.fullmatch(path) is not None


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

    def of(self, method: str, path: str, fields: bytes = b"", *, opens_websocket: bool = False) -> Destination:
        """The destination of a request.

        Args:
            method, path: as sent; the path without the query.
            fields: header lines, each ending in CRLF.
            opens_websocket: the request asks for a WebSocket.

        Raises:
            ClientError: 426, the path is none of an engine's that may be a WebSocket.
        """
        destination = self._by_path(method, path)
        if opens_websocket:
            return _of_websocket(destination)
        if destination is Destination.WORK and names_conversation(fields):
            return Destination.TIED
        return destination

    def _find(self, method: str, path: str) -> Destination:
        is_reading = method in ("GET", "HEAD")
        own_path = path.removesuffix("/") or path  # no engine serves one of these with a slash at its end
        if path == "/admin" or path.startswith("/admin/"):
            return Destination.OPERATORS
        if is_reading and (own_path == "/metrics" or (is_dashboard(own_path) and own_path in self._own_paths)):
            return Destination.OPERATORS
        if is_reading and (own_path in self._own_paths or is_about_models(path)):
            return Destination.OWN
        if self._blocks(method, path):
            return Destination.BLOCKED
        if _DOUBLED_SLASH.fullmatch(path):
            return Destination.MISJOINED
        if (is_reading or method in ("POST", "DELETE")) and is_named(path):
            return Destination.NAMED
        if method != "POST" or path in _LIGHT_PATHS:
            return Destination.LIGHT
        return Destination.TIED if is_response(path) else Destination.WORK


def _of_websocket(destination: Destination) -> Destination:
    if destination is Destination.LIGHT:
        return Destination.WEBSOCKET
    if destination in (Destination.BLOCKED, Destination.MISJOINED):
        return destination
    raise ClientError(
        "This path is no WebSocket. Send the request over HTTP.", status=426, code="upgrade_not_supported"
    )
