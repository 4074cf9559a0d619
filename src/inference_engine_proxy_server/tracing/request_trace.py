"""The span of one request: from the complete request to the last byte of the reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.trace import Span, StatusCode

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts, read_facts
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.request_watch import RequestWatch
from inference_engine_proxy_server.errors import BackendDeclined, BackendError, ProxyError
from inference_engine_proxy_server.tracing.attributes import OPERATIONS, PREFIX, of_generation, of_reply, short
from inference_engine_proxy_server.tracing.reply_names import ReplyNames, read_names
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_excerpt import ReplyExcerpt
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["ReplyReader", "RequestTrace"]

_BACKEND = f"{PREFIX}backend"


class RequestTrace(RequestWatch):
    """Records what happens to a request.

    Args:
        span: of the request; it is recording.
        started_at: when the span starts, by ``clock``.
        started_ns: the same, in nanoseconds since 1970.
        clock: a monotonic clock, in seconds.

    Attributes:
        facts, names: what the reply says of itself; nothing before its end.
    """

    __slots__ = ("_clock", "_error", "_span", "_started_at", "_started_ns", "facts", "names")

    def __init__(self, span: Span, started_at: float, started_ns: int, clock: Callable[[], float]) -> None:
        self._span = span
        self._started_at = started_at
        self._started_ns = started_ns
        self._clock = clock
        self._error: str | None = None
        self.facts = ReplyFacts()
        self.names = ReplyNames()

    def joined_queue(self) -> None:
        """See :class:`RequestWatch`, as for all methods up to :meth:`repeated`."""
        self._add("queued")

    def left_queue(self) -> None:
        self._add("dequeued")

    def connected(self, backend: str) -> None:
        self._add("connected", {_BACKEND: backend})

    def attempt_failed(self, backend: str, error: BackendError) -> None:
        attributes: dict[str, Any] = {_BACKEND: backend, "error.type": error.code}
        if isinstance(error, BackendDeclined):
            attributes["http.response.status_code"] = error.backend_status
        self._add("attempt_failed", attributes)

    def resumed(self, backend: str, error: BackendError, tokens: int) -> None:
        self._add("resumed", {_BACKEND: backend, "error.type": error.code, f"{PREFIX}tokens": tokens})

    def not_resumed(self, backend: str, rule: str) -> None:
        self._add("not_resumed", {_BACKEND: backend, f"{PREFIX}rule": rule})

    def fell_back(self, model: str, fallback: str, reason: str) -> None:
        self._add("fallback", {f"{PREFIX}model": model, f"{PREFIX}fallback": fallback, f"{PREFIX}reason": reason})

    def repeated(self, reason: str) -> None:
        self._add("repeated", {f"{PREFIX}reason": reason})

    def failed(self, error: ProxyError) -> None:
        """The client gets ``error``."""
        self._error = error.code

    def end(self, request: ProxiedRequest, provider: str | None) -> None:
        """End the span of ``request``, which is over.

        Args:
            provider: see :func:`.of_generation`.
        """
        span = self._span
        operation = OPERATIONS.get(request.head.path)
        model = request.alias or request.model
        attributes = of_reply(request)
        if operation is not None:
            attributes |= of_generation(provider, self.facts, self.names)
            if model is not None:
                span.update_name(f"{operation} {short(model)}")
        span.set_attributes(attributes)
        first_byte_at = None if request.has_only_comments else request.first_byte_at
        if first_byte_at is not None:
            self._add_first_byte(request, first_byte_at)
        now = self._ns(self._clock())
        if first_byte_at is not None and request.outcome is Outcome.COMPLETE:
            span.add_event(f"{PREFIX}last_byte", timestamp=now)
        self._set_status(request)
        span.end(now)

    def _add_first_byte(self, request: ProxiedRequest, at: float) -> None:
        is_token = request.head.path in OPERATIONS and request.status < 400 and request.content.is_streamed
        self._span.add_event(f"{PREFIX}first_token" if is_token else f"{PREFIX}first_byte", timestamp=self._ns(at))
        if is_token:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", at - self._started_at)

    def _set_status(self, request: ProxiedRequest) -> None:
        """By the conventions of HTTP servers: only what the server is to blame for is an error."""
        is_error = request.status >= 500 or request.outcome is Outcome.BROKEN
        if is_error or self._error is not None:
            self._span.set_attribute("error.type", self._error or str(request.status))
        if is_error:
            self._span.set_status(StatusCode.ERROR)

    def _add(self, name: str, attributes: dict[str, Any] | None = None) -> None:
        if self._span.is_recording():  # not after a client has left
            self._span.add_event(PREFIX + name, attributes, self._ns(self._clock()))

    def _ns(self, at: float) -> int:
        return self._started_ns + int((at - self._started_at) * 1e9)


class ReplyReader(ReplyObserver):
    """Gives a trace what the reply says of itself.

    Args:
        excerpt: of the reply.
        trace: gets it at the end.
    """

    __slots__ = ("_excerpt", "_trace")

    def __init__(self, excerpt: ReplyExcerpt, trace: RequestTrace) -> None:
        self._excerpt = excerpt
        self._trace = trace

    def end(self, outcome: Outcome) -> None:
        """Read the reply."""
        del outcome
        self._trace.facts = self._excerpt.parsed(read_facts)
        self._trace.names = read_names(self._excerpt.read())
