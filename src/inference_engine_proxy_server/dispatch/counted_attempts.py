"""Attempts whose requests are counted in the usage ledger."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from inference_engine_proxy_server.dispatch.attempt import Attempt, Attempts
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.stream_options import asking_for_usage
from inference_engine_proxy_server.usage.ledger import Ledger
from inference_engine_proxy_server.usage.token_counter import TokenCounter
from inference_engine_proxy_server.usage.usage_event import UsageEventRemover
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["CountedAttempts"]

_WITH_STREAM_OPTIONS = frozenset({"/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions"})


class CountedAttempts(Attempts):
    """Counts each request that takes a slot, when it ends, whatever number of attempts it needed.

    Args:
        ledger: counts them.
        arguments, options: of :class:`Attempts`.
    """

    def __init__(self, ledger: Ledger, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ledger = ledger

    def send(self, attempt: Attempt) -> Coroutine[Any, Any, None]:
        """See :meth:`Attempts.send`. The engine is asked for the usage of a stream, if it reports that on request."""
        request, backend = attempt.request, attempt.backend
        if request.requirements.needs_slot:
            self._observe(request, backend)
            if (
                _reports_on_request(backend)
                and request.head.path in _WITH_STREAM_OPTIONS
                and request.head.minor_version == 1  # without chunks, the usage could not be taken out
                and request.content.is_streamed
            ):
                _ask_for_usage(attempt)
        return super().send(attempt)

    def _observe(self, request: ProxiedRequest, backend: Backend) -> None:
        observer = request.observers.find(_LedgerObserver)
        if observer is None:
            counter = TokenCounter.of(request)  # before the observer that reads it
            observer = _LedgerObserver(request, counter, self._ledger, self._dispatcher.fleet.clock)
            request.observers.add(observer)
        observer.backend = backend


def _reports_on_request(backend: Backend) -> bool:
    """Whether the streams of ``backend`` report usage if, and only if, a request asks for it."""
    stated = backend.config.stream_usage
    return backend.serving.streams_usage_on_request if stated is None else stated


def _ask_for_usage(attempt: Attempt) -> None:
    """Ask for the usage, unless the client does, and keep it from the client."""
    request = attempt.request
    body = asking_for_usage(request.body)
    if body is None:
        return
    if not request.begun or request.has_only_comments:
        request.observers.edit_with(UsageEventRemover(request))
    if request.observers.has_editor:  # not if a stream that began without one is being resumed
        attempt.body = body


class _LedgerObserver(ReplyObserver):
    """Adds one request to the ledger when it ends.

    Attributes:
        backend: of the latest attempt.
    """

    __slots__ = ("_clock", "_counter", "_ledger", "_request", "backend")

    backend: Backend

    def __init__(
        self, request: ProxiedRequest, counter: TokenCounter, ledger: Ledger, clock: Callable[[], float]
    ) -> None:
        self._request = request
        self._counter = counter
        self._ledger = ledger
        self._clock = clock

    def end(self, outcome: Outcome) -> None:
        """Count the request, unless its client left before it was sent."""
        request = self._request
        has_no_reply = not request.begun or request.has_only_comments
        if outcome is Outcome.CLIENT_LEFT and has_no_reply and request.source is None:
            return
        self._ledger.count(
            "" if request.access is None else request.access.key.name,
            self.backend.serving.listed_name(request.model) or "",
            self._counter.used,
            self._clock() - request.started_at,
            has_failed=request.status >= 400 or outcome is Outcome.BROKEN,
        )
