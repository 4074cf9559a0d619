"""May a request be sent again, and where? Pure; the rules stand in one table of :func:`next_attempt`.

RFC 9110, 9.2.2, forbids a proxy to repeat a request that is not idempotent on its own account. Generating text is
not idempotent, but for the paths listed here nothing is changed by doing it twice, so repeating them is this
proxy's documented policy; all others are repeated only when no byte of them was sent.
"""

from __future__ import annotations

from enum import Enum

from inference_engine_proxy_server.errors import BackendBroke, BackendError, BackendUnreachable

__all__ = ["NextAttempt", "next_attempt"]

_REPEATABLE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_REPEATABLE_PATHS = frozenset(
    prefix + path
    for prefix in ("", "/v1")
    for path in (
        "/chat/completions", "/completions", "/completion", "/messages", "/messages/count_tokens",
        "/embeddings", "/embedding", "/rerank", "/reranking", "/score", "/classify", "/pooling",
        "/tokenize", "/detokenize", "/apply-template", "/infill",
    )
)  # fmt: skip
_REPLAYS = 1  # of a request that reached an engine: a prompt that kills engines must not take the fleet down


class NextAttempt(Enum):
    """What to do after an attempt failed."""

    NONE = "none"
    SAME_ON_FRESH_CONNECTION = "same"
    """The kept-alive connection had gone stale; that says nothing about the backend."""
    OTHER_BACKEND = "other"


def next_attempt(error: BackendError, *, method: str, path: str, reply_begun: bool, replays: int) -> NextAttempt:
    """What to do after ``error``.

    Args:
        error: how the attempt failed.
        method, path: of the request.
        reply_begun: a byte of the reply has gone to the client, so no other reply can be given any more.
        replays: how often the request has been repeated so far after it had been sent.
    """
    if reply_begun:
        return NextAttempt.NONE
    if isinstance(error, BackendUnreachable):
        return NextAttempt.OTHER_BACKEND
    repeatable = method in _REPEATABLE_METHODS or path in _REPEATABLE_PATHS
    if not isinstance(error, BackendBroke) or not repeatable:
        return NextAttempt.NONE
    if error.on_reused_connection:
        return NextAttempt.SAME_ON_FRESH_CONNECTION
    return NextAttempt.OTHER_BACKEND if replays < _REPLAYS else NextAttempt.NONE
