"""One attempt to serve a request: send it to one backend, and decide what a held reply means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from inference_engine_proxy_server.dispatch.leases import Dispatcher
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
    InvalidReply,
)
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.tasks.deadlines import NEVER
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.late_reply import LateReply
from inference_engine_proxy_server.wire.reply_sink import HeldReply

__all__ = ["Attempt", "Attempts"]

_FAILURE_STATUSES = frozenset({500, 502, 503, 504})  # a backend's own failures; 501 and 505 are about the request
_MOST_ASKED = 16  # backends that are asked for a resource that only one of them may have
_RETRY_AFTER = re.compile(rb"(?:^|\n)retry-after:[ \t]*([0-9]{1,6})", re.IGNORECASE)


class Attempt(msgspec.Struct, gc=False):
    """One attempt.

    Attributes:
        request: its reply has not begun.
        backend: holds a lease for the request.
        failed: the backends of earlier attempts, with the error of each.
    """

    request: ProxiedRequest
    backend: Backend
    failed: Mapping[Backend, BackendError]


class Attempts:
    """Makes attempts, and reports to the fleet what each of them shows about its backend.

    Args:
        dispatcher: has the fleet, which receives the evidence.
        metrics: counts repeated requests.
        names_backend: whether replies name their backend in ``x-backend``.
        keeps_credentials: whether a client's key goes on to a backend for which the proxy has no key.
        retry_statuses: after which a repeatable request is tried on another backend.
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
        self._held_statuses = self._retry_statuses | BUSY_STATUSES  # these may ask for a pause
        self._first_token_seconds = first_token_seconds
        self.budget = RetryBudget(dispatcher.fleet.clock)

    async def send(self, attempt: Attempt) -> None:
        """Send the request and relay the whole reply.

        Raises:
            BackendError: the attempt failed; the reply may have begun.
        """
        request, backend = attempt.request, attempt.backend
        head, connections = request.head, backend.connections
        sink = LateReply(request) if request.has_only_comments else request
        request.backend = backend.url
        if self._names_backend:
            request.backend_fields = backend.reply_field
        credentials = backend.credentials
        if credentials is None:
            credentials = head.credentials if self._keeps_credentials else b""
        affinity = request.requirements.affinity
        held_statuses = self._held_statuses
        if affinity is not None and affinity.is_unlocated:
            held_statuses = affinity.lacking_statuses
        connection = connections.take_idle() or await connections.connect()
        origin, body = connections.origin, request.body
        section = head.for_backend(
            origin.authority,
            origin.prefix,
            request.request_id,
            len(body),
            credentials=credentials,
            close=not connections.keeps_alive,
        )
        while True:
            try:
                reply = connection.request(
                    [section, body], sink, is_head=head.method == "HEAD", held_statuses=held_statuses
                )
                if self._first_token_seconds:
                    connection.limit_first_event(self._first_token_seconds if request.content.is_streamed else NEVER)
                held = await reply
                if held is not None:
                    self._decide(attempt, held)
                    await connection.accept()
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
            reply_begun=request.begun and not request.has_only_comments,
            losses=request.losses,
            connect_timeouts=connect_timeouts,
        )

    def report(self, backend: Backend, error: BackendError) -> None:
        """Report to the fleet at once what a failed attempt shows about ``backend``."""
        fleet = self._fleet
        if isinstance(error, BackendUnreachable):
            fleet.report_refused_connection(backend, error.reason)
        elif isinstance(error, BackendBroke):
            if not error.crossed_request:
                fleet.report_broken_connection(backend)
        elif isinstance(error, BackendTimeout):
            fleet.report_timeout(backend)
        elif isinstance(error, InvalidReply):
            fleet.report_failure(backend, "it does not answer in HTTP")
        elif isinstance(error, BackendDeclined):
            self._judge(backend, error.backend_status, 0.0)

    async def _reconnect(self, attempt: Attempt) -> BackendConnection:
        try:
            return await attempt.backend.connections.connect()
        except BackendUnreachable:
            attempt.request.losses += 1  # the backend may have died of the request
            raise

    def _decide(self, attempt: Attempt, held: HeldReply) -> None:
        """Raises a :class:`BackendError`, which discards the held reply, if another backend should try."""
        request, backend, requirements = attempt.request, attempt.backend, attempt.request.requirements
        has_other = self._placement.has_other(requirements, [*attempt.failed, backend])
        if requirements.affinity is not None and requirements.affinity.is_unlocated:
            if has_other and len(attempt.failed) + 1 < _MOST_ASKED:
                raise BackendLacks("The backend does not have what the request names.")
            return
        pause = _RETRY_AFTER.search(held.fields)
        if pause is not None:
            self._fleet.report_request_to_wait(backend, int(pause[1]))
        declined = BackendDeclined(held.status)
        if (
            has_other
            and held.status in self._retry_statuses
            and self.next(request, declined) is not NextAttempt.NONE
            and self.budget.take(self._dispatcher.requests_in_flight)
        ):
            raise declined

    def _judge(self, backend: Backend, status: int, sent_at: float) -> None:
        if status in _FAILURE_STATUSES:
            self._fleet.report_failure(backend, f"it answered {status}")
        elif status < 400:
            self._fleet.report_success(backend, sent_at)
