"""One attempt to serve a request: send it to one backend, and decide what a held reply means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.dispatch.ollama import OllamaReply, is_ollama_path
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.retry import NextAttempt, RetryBudget, next_attempt
from inference_engine_proxy_server.errors import (
    BUSY_STATUSES,
    BackendBroke,
    BackendDeclined,
    BackendError,
    BackendLacks,
    BackendTimeout,
    BackendUnreachable,
    EngineLacks,
    InvalidReply,
    PromptTooLong,
    StreamNotContinued,
)
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.routing.paths import MISSING_STATUSES
from inference_engine_proxy_server.routing.requirements import beyond
from inference_engine_proxy_server.tasks.deadlines import NEVER
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.collected_reply import CollectedReply
from inference_engine_proxy_server.wire.late_reply import LateReply
from inference_engine_proxy_server.wire.reply_sink import HeldReply

__all__ = ["Attempt", "Attempts"]

_Sink = ProxiedRequest | LateReply | ResumableStream

_FAILURE_STATUSES = frozenset({500, 502, 503, 504})  # a backend's own failures; 501 and 505 are about the request
_TOO_LONG_STATUSES = frozenset({400, 413})
_TOO_LONG = re.compile(  # llama.cpp; OpenAI and many others; vLLM and SGLang
    rb"exceed_context_size_error|context_length_exceeded|maximum context length|longer than the model's context length"
)
_ERROR_BYTES = 1024 * 1024  # longest error that is read
_MOST_ASKED = 16  # backends that are tried for a resource whose backend is unknown
_RETRY_AFTER = re.compile(rb"(?:^|\n)retry-after:[ \t]*([0-9]{1,6})", re.IGNORECASE)


class Attempt(msgspec.Struct):
    """One attempt.

    Attributes:
        request: the request; its reply has not begun.
        backend: the leased backend.
        failed: the backends of earlier attempts, with the error of each.
        body: what the backend gets as the body of the request.
    """

    request: ProxiedRequest
    backend: Backend
    failed: Mapping[Backend, BackendError]
    body: bytes


class Attempts:
    """Makes attempts, and reports to the fleet what they show about their backends.

    Args:
        dispatcher: its fleet receives the evidence.
        metrics: counts repeated requests.
        names_backend: whether replies name their backend in ``x-backend``.
        keeps_credentials: whether a client's key is forwarded to a backend for which the proxy has no key.
        retry_statuses: replies with these are retried on another backend if the request is repeatable.
        first_token_seconds: longest wait for the first event of a stream; 0 for no limit.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: RequestMetrics,
        *,
        names_backend: bool,
        keeps_credentials: bool,
        retry_statuses: Iterable[int],
        first_token_seconds: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._fleet = dispatcher.fleet
        self._placement = dispatcher.placement
        self._metrics = metrics
        self._names_backend = names_backend
        self._keeps_credentials = keeps_credentials
        self._retry_statuses = frozenset(retry_statuses)
        self._held_statuses = self._retry_statuses | BUSY_STATUSES | MISSING_STATUSES
        self._held_before_fallback = self._held_statuses | _TOO_LONG_STATUSES
        self._first_token_seconds = first_token_seconds
        self.budget = RetryBudget(dispatcher.fleet.clock)

    async def send(self, attempt: Attempt) -> None:
        """Send the request and relay the whole reply.

        Raises:
            BackendError: the attempt failed; the reply may have begun.
            PromptTooLong: another model may have room for the prompt.
        """
        request, backend = attempt.request, attempt.backend
        head, connections = request.head, backend.connections
        stream, body = (None, attempt.body) if request.sink is None else _as_received(request.sink, attempt)
        request.backend = backend.url
        request.attempts += 1
        request.backend_fields = backend.reply_field if self._names_backend else b""
        credentials = backend.credentials
        if credentials is None:
            credentials = head.credentials if self._keeps_credentials else b""
        affinity = request.requirements.affinity
        held_statuses = self._held_statuses
        if affinity is not None and affinity.is_unlocated:
            held_statuses = affinity.lacking_statuses
        elif request.fallback_after_seconds is not None:
            held_statuses = self._held_before_fallback
        connection = connections.take_idle() or await connections.connect()
        origin = connections.origin
        section = head.for_backend(
            origin.authority,
            origin.prefix,
            request.request_id,
            len(body),
            credentials=credentials,
            close=not connections.keeps_alive,
        )
        while True:
            sink = stream or (LateReply(request) if request.has_only_comments else request)
            try:
                reply = connection.request([section, body], sink, is_head=head.is_head, held_statuses=held_statuses)
                if self._first_token_seconds:
                    self._limit_first_event(request, connection)
                held = await reply
                if held is not None:
                    self._decide(attempt, held)
                    sink = await self._accept(request, held, connection, sink)
                break
            except BackendBroke as error:
                if self.next(request, error) is not NextAttempt.SAME_ON_FRESH_CONNECTION:
                    raise
                self._metrics.count_retry(error.code)
            finally:
                connections.release(connection)
            connection = await self._reconnect(attempt)
        if sink.status >= 500 or backend.health.is_doubtful:
            self._judge(backend, sink.status, connection.sent_at)

    def next(self, request: ProxiedRequest, error: BackendError, connect_timeouts: int = 0) -> NextAttempt:
        """What may follow an attempt that failed with ``error``; see :func:`~.retry.next_attempt`."""
        return next_attempt(
            error,
            method=request.head.method,
            path=request.head.path,
            reply_begun=not request.awaits_reply,
            losses=request.losses,
            connect_timeouts=connect_timeouts,
        )

    def report(self, backend: Backend, error: BackendError) -> None:
        """Report the evidence of a failed attempt about ``backend`` to the fleet at once."""
        fleet = self._fleet
        if isinstance(error, BackendUnreachable):
            fleet.report_refused_connection(backend, error.reason)
        elif isinstance(error, BackendBroke):
            if not error.crossed_request:
                fleet.report_broken_connection(backend)
        elif isinstance(error, BackendTimeout):
            fleet.report_timeout(backend)
        elif isinstance(error, InvalidReply) and not isinstance(error, StreamNotContinued):
            fleet.report_failure(backend, "it does not answer in HTTP")
        elif isinstance(error, BackendDeclined):
            self._judge(backend, error.backend_status, 0.0)

    async def _accept(
        self,
        request: ProxiedRequest,
        held: HeldReply,
        connection: BackendConnection,
        sink: _Sink,
    ) -> _Sink:
        """Relay the held reply to ``sink``, or to the sink that is returned.

        Raises:
            PromptTooLong: the reply says so, and another model can serve the request.
        """
        collected = None
        if held.status in _TOO_LONG_STATUSES and request.fallback_after_seconds is not None:
            collected = CollectedReply(_ERROR_BYTES)
            await connection.accept(collected)
            if _TOO_LONG.search(collected.body):
                raise PromptTooLong(collected.parts)
        if sink is request:
            sink = _sink_of_held(request, held)
        if collected is None:
            await connection.accept(sink)
        else:
            sink.write_whole(*collected.parts)
            sink.end()
        return sink

    def _limit_first_event(self, request: ProxiedRequest, connection: BackendConnection) -> None:
        connection.limit_first_event(self._first_token_seconds if request.content.is_streamed else NEVER)

    async def _reconnect(self, attempt: Attempt) -> BackendConnection:
        try:
            return await attempt.backend.connections.connect()
        except BackendUnreachable:
            attempt.request.losses += 1  # the request may have crashed the backend
            raise

    def _decide(self, attempt: Attempt, held: HeldReply) -> None:
        """Discard the held reply by raising a :class:`BackendError` if another backend should be tried."""
        request, backend, requirements = attempt.request, attempt.backend, attempt.request.requirements
        has_other = self._placement.has_other(requirements, [*attempt.failed, backend])
        if requirements.affinity is not None and requirements.affinity.is_unlocated:
            if has_other and len(attempt.failed) + 1 < _MOST_ASKED:
                raise BackendLacks("The backend does not have the resource that the request names.")
            return
        if held.status in MISSING_STATUSES:
            if requirements.model in backend.serving.model_ids:
                return
            others = beyond(requirements, backend)
            if len(others.lacking) < _MOST_ASKED and self._placement.has_other(others, [*attempt.failed, backend]):
                raise EngineLacks("The engine does not have what the request means.")
            return
        pause = _RETRY_AFTER.search(held.fields)
        if pause is not None:
            self._fleet.report_request_to_wait(backend, int(pause[1]))
        if (
            (has_other or request.fallback_after_seconds is not None)
            and held.status in self._retry_statuses
            and self.next(request, BackendDeclined(held.status)) is not NextAttempt.NONE
            and self.budget.take(self._dispatcher.requests_in_flight)
        ):
            raise BackendDeclined(held.status)

    def learn_path(self, request: ProxiedRequest, failed: Mapping[Backend, BackendError]) -> None:
        """Learn from a request that is over which backends lack its path, if another one has it."""
        lacking = [one for one, error in failed.items() if isinstance(error, EngineLacks)]
        if lacking and 0 < request.status < 500 and request.status not in MISSING_STATUSES:
            self._placement.paths.learn(request.head.method, request.head.path, lacking)

    def _judge(self, backend: Backend, status: int, sent_at: float) -> None:
        if status in _FAILURE_STATUSES:
            self._fleet.report_failure(backend, f"it answered {status}")
        elif status < 400:
            self._fleet.report_success(backend, sent_at)


def _sink_of_held(request: ProxiedRequest, held: HeldReply) -> ProxiedRequest | LateReply:
    """What receives a held reply that is relayed to the client of ``request``."""
    if request.has_only_comments:  # sent after the request
        return LateReply(request)
    return OllamaReply(request) if held.status in MISSING_STATUSES and is_ollama_path(request.head.path) else request


def _as_received(stream: ResumableStream, attempt: Attempt) -> tuple[ResumableStream | None, bytes]:
    """The receiver of the reply of the backend, ``None`` for the client itself, and the body to send."""
    body = stream.body_for(attempt.backend, attempt.body)
    return (None, attempt.body) if body is None else (stream, body)
