"""May a request be sent again, and where? Pure.

::

    how the attempt failed                       sent again       which requests    how often
    no connection: nothing was sent              elsewhere        all               3 connect timeouts at most
    a kept-alive connection was closed           fresh connection repeatable ones   once
    a fresh connection broke                     elsewhere        repeatable ones   1 backend may lose it
    taken back from a stuck or vanished backend  elsewhere        repeatable ones   1 backend may lose it
    answered 429, 502 or 503                     elsewhere        repeatable ones   the same, within the budget
    answered 404, and who has it is not known    elsewhere        tied ones         16 in all (see bonds.py)
    no answer in time, or not in HTTP            no
    any of these, the reply having begun         no

RFC 9110, 9.2.2, forbids a proxy to repeat a request that is not idempotent on its own account. Generating text is
not idempotent, but for the paths listed here nothing is changed by doing it twice, so repeating them is this
proxy's documented policy; all others are repeated only when no byte of them was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from inference_engine_proxy_server.errors import (
    BackendBroke,
    BackendDeclined,
    BackendError,
    BackendUnreachable,
    RequestMoved,
)

__all__ = ["DECLINABLE_STATUSES", "NextAttempt", "RetryBudget", "is_repeatable", "next_attempt"]

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

DECLINABLE_STATUSES = frozenset({429, 502, 503})
"""Replies that say "not here, not now": another backend may do better."""

_LOSSES = 1  # backends that may fail a request and leave it another: a prompt that kills engines must not kill all
_CONNECT_TIMEOUTS = 3  # each costs seconds; refused connections cost nothing and are not counted

_WINDOW_SECONDS = 10.0
_BUDGET_SHARE = 0.2  # of requests; Envoy's and Finagle's
_BUDGET_LEAST = 3


class NextAttempt(Enum):
    """What to do after an attempt failed."""

    NONE = "none"
    SAME_ON_FRESH_CONNECTION = "same"
    """The kept-alive connection had gone stale; that says nothing about the backend."""
    OTHER_BACKEND = "other"


def is_repeatable(method: str, path: str) -> bool:
    """Whether doing it twice changes nothing."""
    return method in _REPEATABLE_METHODS or path in _REPEATABLE_PATHS


def next_attempt(
    error: BackendError, *, method: str, path: str, reply_begun: bool, losses: int, connect_timeouts: int = 0
) -> NextAttempt:
    """What to do after ``error``.

    Args:
        error: how the attempt failed.
        method, path: of the request.
        reply_begun: a byte of the reply has gone to the client, so no other reply can be given any more.
        losses: backends that had the request before and failed it.
        connect_timeouts: connections that could not be made in time, this one included.
    """
    if reply_begun:
        return NextAttempt.NONE
    if isinstance(error, BackendUnreachable):
        return NextAttempt.OTHER_BACKEND if connect_timeouts < _CONNECT_TIMEOUTS else NextAttempt.NONE
    if not is_repeatable(method, path):
        return NextAttempt.NONE
    if isinstance(error, BackendBroke) and error.on_reused_connection:
        return NextAttempt.SAME_ON_FRESH_CONNECTION
    if isinstance(error, (BackendBroke, RequestMoved, BackendDeclined)) and losses < _LOSSES:
        return NextAttempt.OTHER_BACKEND
    return NextAttempt.NONE  # timeouts: an engine is at work on it; invalid replies: it was


class RetryBudget:
    """Keeps repeated requests few beside first ones, so that a fleet that fails is not asked twice as much.

    Only for requests that an engine declined; what broke is repeated without asking, and once.

    Args:
        clock: seconds that only grow.

    Attributes:
        requests: to be counted up with every request.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.requests = 0
        self._repeated = 0
        self._under_way = 0
        self._window_ends = 0.0

    def take(self, in_flight: int) -> bool:
        """Whether one more may be repeated; :meth:`give_back` must follow when it is over.

        Args:
            in_flight: requests under way.
        """
        now = self._clock()
        if now >= self._window_ends:
            windows = min(30, 1 + int((now - self._window_ends) / _WINDOW_SECONDS))
            self._window_ends = now + _WINDOW_SECONDS
            self.requests >>= windows  # what was long ago counts less and less
            self._repeated >>= windows
        allowed_at_a_time = max(_BUDGET_LEAST, _BUDGET_SHARE * in_flight)
        allowed_in_all = _BUDGET_LEAST + _BUDGET_SHARE * self.requests
        if self._under_way >= allowed_at_a_time or self._repeated >= allowed_in_all:
            return False
        self._under_way += 1
        self._repeated += 1
        return True

    def give_back(self) -> None:
        """A repeated request is over."""
        self._under_way -= 1
