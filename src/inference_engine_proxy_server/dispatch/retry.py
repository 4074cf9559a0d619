"""Whether a failed request may be sent again, and where. Pure.

::

    how the attempt failed                       sent again to      which requests    how often
    no connection: nothing was sent              another backend    all               3 connect timeouts at most
    a kept-alive connection crossed it           a new connection   repeatable ones   once
    a new connection broke                       another backend    repeatable ones   1 backend may lose it
    taken back from a stuck or vanished backend  another backend    repeatable ones   1 backend may lose it
    answered with a status in RETRY_STATUSES     another backend    repeatable ones   the same, within the budget
    answered 404, 405 or 501 to a request that   another kind       all               16 in all (see paths.py)
      names no model that the backend lists
    answered 404 about an unlocated resource     another backend    all with affinity 16 in all (see affinity.py)
    no answer, or no first event, in time        another backend    repeatable ones   1 backend may lose it
    the answer is not HTTP                       not at all
    any of these after the reply began           not at all

A backend may close a kept-alive connection as idle just when a request is sent. Such a close arrives within one round
trip; only then is the request sent to the same backend again.

RFC 9110, section 9.2.2, forbids a proxy to repeat a non-idempotent request on its own initiative. Generating text is
not idempotent, but repeating a request for one of the paths below changes nothing. So repeating those is this proxy's
documented policy; all others are repeated only if no byte of them was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from inference_engine_proxy_server.errors import (
    BackendBroke,
    BackendDeclined,
    BackendError,
    BackendTimeout,
    BackendUnreachable,
    RequestMoved,
)

__all__ = ["NextAttempt", "RetryBudget", "is_repeatable", "next_attempt"]

_REPEATABLE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_REPEATABLE_PATHS = frozenset(
    prefix + path
    for prefix in ("", "/v1")
    for path in (
        "/chat/completions", "/completions", "/completion", "/messages", "/messages/count_tokens",
        "/embeddings", "/embedding", "/rerank", "/reranking", "/score", "/classify", "/pooling",
        "/tokenize", "/detokenize", "/apply-template", "/infill",
        "/chat/completions/input_tokens", "/chat/completions/render", "/completions/render", "/responses/input_tokens",
        "/audio/transcriptions", "/audio/translations", "/audio/speech",
        "/images/generations", "/images/edits", "/images/variations", "/moderations",
    )
) | {
    "/v2/embed", "/v2/rerank",  # Cohere's API
    "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show",  # Ollama's
    # LM Studio's; not /api/v1/chat, which stores the conversation
    "/api/v0/chat/completions", "/api/v0/completions", "/api/v0/embeddings",
    # KoboldCpp's, which TabbyAPI has, too
    "/api/v1/generate", "/api/latest/generate", "/api/extra/generate/stream",
    "/api/extra/tokencount", "/api/extra/tokenize", "/api/extra/detokenize",
    "/v1/token/encode", "/v1/token/decode",  # TabbyAPI's
    "/embed", "/embed_all", "/embed_sparse", "/predict", "/similarity",  # text-embeddings-inference's
    "/generate", "/generate_stream",  # text-generation-inference's and SGLang's
    "/inference",  # whisper.cpp's
    "/invocations",  # Amazon SageMaker's, which vLLM and SGLang serve
}  # fmt: skip

_LOSSES = (
    1  # backends that may fail one request after it was sent, so that a prompt that kills engines does not kill all
)
_CONNECT_TIMEOUTS = 3  # each takes seconds; refused connections take no time and are not counted

_WINDOW_SECONDS = 10.0
_BUDGET_SHARE = 0.2  # of requests, as in Envoy and Finagle
_BUDGET_LEAST = 3


class NextAttempt(Enum):
    """What to do after a failed attempt."""

    NONE = "none"
    SAME_ON_FRESH_CONNECTION = "same"
    """The kept-alive connection was stale, which is no evidence about the backend."""
    OTHER_BACKEND = "other"


def is_repeatable(method: str, path: str) -> bool:
    """Whether sending the request twice changes nothing."""
    return method in _REPEATABLE_METHODS or path in _REPEATABLE_PATHS


def next_attempt(
    error: BackendError, *, method: str, path: str, reply_begun: bool, losses: int, connect_timeouts: int = 0
) -> NextAttempt:
    """What to do after ``error``.

    Args:
        error: how the attempt failed.
        method: the request's method.
        path: the request's path.
        reply_begun: whether a byte of the reply has been sent to the client, so that no other reply is possible.
        losses: how many backends received the request in earlier attempts and failed.
        connect_timeouts: connections of the request that timed out, this one included.
    """
    if reply_begun:
        return NextAttempt.NONE
    if isinstance(error, BackendUnreachable):
        return NextAttempt.OTHER_BACKEND if connect_timeouts < _CONNECT_TIMEOUTS else NextAttempt.NONE
    if not is_repeatable(method, path):
        return NextAttempt.NONE
    if isinstance(error, BackendBroke) and error.crossed_request:
        return NextAttempt.SAME_ON_FRESH_CONNECTION
    if isinstance(error, (BackendBroke, BackendTimeout, RequestMoved, BackendDeclined)) and losses < _LOSSES:
        return NextAttempt.OTHER_BACKEND
    return NextAttempt.NONE  # after a timeout, the engine is still working; an invalid reply is an answer


class RetryBudget:
    """Bounds the share of repeated requests, so that a failing fleet does not get twice the load.

    Applies only to requests that an engine declined. Requests on broken connections are repeated once regardless.

    Args:
        clock: a monotonic clock, in seconds.

    Attributes:
        requests: increment it with every request.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.requests = 0
        self._repeated = 0
        self._under_way = 0
        self._window_ends = 0.0

    def take(self, in_flight: int) -> bool:
        """Whether one more request may be repeated. If so, call :meth:`release` when it has ended.

        Args:
            in_flight: number of requests in flight.
        """
        now = self._clock()
        if now >= self._window_ends:
            windows = min(30, 1 + int((now - self._window_ends) / _WINDOW_SECONDS))
            self._window_ends = now + _WINDOW_SECONDS
            self.requests >>= windows  # older requests count less and less
            self._repeated >>= windows
        allowed_at_a_time = max(_BUDGET_LEAST, _BUDGET_SHARE * in_flight)
        allowed_in_all = _BUDGET_LEAST + _BUDGET_SHARE * self.requests
        if self._under_way >= allowed_at_a_time or self._repeated >= allowed_in_all:
            return False
        self._under_way += 1
        self._repeated += 1
        return True

    def release(self) -> None:
        """Record the end of a repeated request."""
        self._under_way -= 1
