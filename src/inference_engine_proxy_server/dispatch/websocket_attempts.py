"""Attempts to open a WebSocket on a backend."""

from __future__ import annotations

from collections.abc import Iterable

from inference_engine_proxy_server.dispatch.attempt import Attempt, Attempts
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.errors import BackendBroke
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.reply_sink import HeldReply
from inference_engine_proxy_server.wire.websocket_handshake import expected_accept
from inference_engine_proxy_server.wire.websocket_relay import WebSocketRelay

__all__ = ["WebSocketAttempts"]

_SWITCHING = 101


class WebSocketAttempts(Attempts):
    """Opens WebSockets, each on a backend connection of its own.

    Args:
        dispatcher, metrics, names_backend, keeps_credentials, retry_statuses: as for :class:`Attempts`.
        deadlines: watches the open WebSockets.
        idle_seconds: a WebSocket is closed after this time without a byte; ``inf`` for no limit.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: RequestMetrics,
        *,
        names_backend: bool,
        keeps_credentials: bool,
        retry_statuses: Iterable[int],
        deadlines: Deadlines,
        idle_seconds: float,
    ) -> None:
        super().__init__(
            dispatcher,
            metrics,
            names_backend=names_backend,
            keeps_credentials=keeps_credentials,
            retry_statuses=retry_statuses,
            first_token_seconds=0,
        )
        self._held_statuses |= {_SWITCHING}
        self._deadlines = deadlines
        self._idle_seconds = idle_seconds
        self._open = 0
        metrics.add_gauge("websockets", "Open WebSockets.", lambda: float(self._open))

    async def send(self, attempt: Attempt) -> None:
        """Send the handshake. Relay the WebSocket until both sides have ended it, or the reply that opens none.

        Raises:
            BackendError: the attempt failed; the reply may have begun.
        """
        request, backend = attempt.request, attempt.backend
        head, connections = request.head, backend.connections
        request.backend = backend.url
        request.attempts += 1
        request.backend_fields = backend.reply_field if self._names_backend else b""
        credentials = backend.credentials
        if credentials is None:
            credentials = head.credentials if self._keeps_credentials else b""
        connection = await connections.connect()
        try:
            connection.expect_websocket(expected_accept(head))
            at = connections.origin
            section = head.for_backend(
                at.authority, at.prefix, request.request_id, 0, credentials=credentials, close=False
            )
            held = await connection.request([section], request, is_head=False, held_statuses=self._held_statuses)
            if held is not None and held.status == _SWITCHING:
                await self._relay(attempt, connection, held)
                return
            if held is not None:
                self._decide(attempt, held)
                await connection.accept(request)
        finally:
            connections.discard(connection)
        if request.status >= 500 or backend.health.is_doubtful:
            self._judge(backend, request.status, connection.sent_at)

    async def _relay(self, attempt: Attempt, connection: BackendConnection, held: HeldReply) -> None:
        backend = attempt.backend
        if backend.health.is_doubtful:  # now, not in hours
            self._judge(backend, _SWITCHING, connection.sent_at)
        request = attempt.request
        relay = WebSocketRelay(request, self._deadlines, self._idle_seconds)
        self._open += 1
        try:
            await relay.start(connection, held)
        except BackendBroke as error:
            # No evidence against the backend: a socket that is closed before all of its bytes were read is reset.
            backend.recheck.set()
            request.fail(error)
        finally:
            self._open -= 1
            relay.close()
        request.end()
