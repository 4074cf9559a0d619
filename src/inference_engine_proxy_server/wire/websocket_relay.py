"""Relays the bytes of an open WebSocket between a client and a backend, without reading its messages."""

from __future__ import annotations

import asyncio
import logging

from inference_engine_proxy_server.errors import BackendBroke
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.tasks.light_task import Completion
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.reply_sink import HeldReply
from inference_engine_proxy_server.wire.websocket_handshake import reply_fields

__all__ = ["WebSocketRelay"]

_CLOSING_SECONDS = 10.0  # without a byte, from the end of one side to that of the other; as in the library websockets
_LOOK_SECONDS = 1.0  # between two checks for progress; reading the clock for each chunk would cost more

logger = logging.getLogger(__name__)


class WebSocketRelay(asyncio.Protocol):
    """One open WebSocket: the protocol of the backend's connection, and the source of the client's.

    When a side closes its sending half, so does the proxy towards the other side. Both connections close after the
    second end, or after the first one if a side uses TLS, which has no half-closed connections.

    Args:
        exchange: the client's request, whose reply has not begun.
        deadlines: watches the relay.
        idle_seconds: both sides are closed after this time without a byte of either; ``inf`` for no limit.

    Attributes:
        deadline: when to check for progress next.
    """

    __slots__ = (
        "_backend", "_client", "_client_bytes", "_deadlines", "_ended", "_exchange", "_idle_seconds", "_moved_bytes",
        "_one_side_ended", "_quiet_since", "deadline",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, deadlines: Deadlines, idle_seconds: float) -> None:
        self._exchange = exchange
        self._deadlines = deadlines
        self._idle_seconds = idle_seconds
        self._backend: asyncio.Transport
        self._client: asyncio.Transport
        self._client_bytes = 0  # received from the client
        self._moved_bytes = 0  # in both directions, at the last check
        self._one_side_ended = False
        self._quiet_since = 0.0
        self._ended: Completion[None] = Completion()
        self.deadline = NEVER

    def start(self, connection: BackendConnection, held: HeldReply) -> Completion[None]:
        """Open the client's WebSocket and relay until both sides have ended; :meth:`close` must follow.

        Args:
            connection: has received ``held``, a reply with status 101.

        Returns:
            Done at the end of the backend's connection. Fails with :class:`BackendBroke` if the backend broke it.
        """
        self._backend, from_backend = connection.hand_over(self)
        self._exchange.source = self
        fields = reply_fields(self._exchange.head, held.fields)
        self._client, from_client = self._exchange.switch_protocols(fields, self)
        self._note_progress()
        self._deadlines.watch(self)
        self._backend.resume_reading()
        if from_backend:
            self.data_received(from_backend)
        if from_client:
            self.take(from_client)
        return self._ended

    def close(self) -> None:
        """Let go of both connections, which their owners close."""
        self._deadlines.forget(self)
        self._exchange.source = None  # a reference cycle

    # --- the backend's side

    def data_received(self, data: bytes) -> None:
        """Relay bytes of the backend."""
        self._exchange.sent_bytes += len(data)
        if not self._client.is_closing():
            self._client.write(data)

    def eof_received(self) -> bool:
        """The backend sends no more; its connection stays open for the rest of the client's bytes."""
        self._end_one_side(self._client)
        return self._backend.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """The backend's connection has ended."""
        if self._ended.done():
            return
        if exc is None or self._one_side_ended:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(BackendBroke("The backend broke the connection of the WebSocket."))

    def pause_writing(self) -> None:
        """The backend reads slower than the client sends."""
        if not self._client.is_closing():
            self._client.pause_reading()

    def resume_writing(self) -> None:
        """The backend has caught up."""
        if not self._client.is_closing():
            self._client.resume_reading()

    # --- the client's side

    def take(self, data: bytes) -> None:
        """Relay bytes of the client."""
        self._client_bytes += len(data)
        if not self._backend.is_closing():
            self._backend.write(data)

    def end_client(self) -> bool:
        """The client sends no more. Returns whether its connection stays open for the rest of the backend's bytes."""
        self._end_one_side(self._backend)
        return self._client.can_write_eof()

    is_unanswered = False

    def comment_sent(self) -> None:
        """Does nothing: a WebSocket gets no comments."""

    def pause_reading(self) -> None:
        """The client reads slower than the backend sends."""
        if not self._backend.is_closing():
            self._backend.pause_reading()

    def resume_reading(self) -> None:
        """The client has caught up."""
        if not self._backend.is_closing():
            self._backend.resume_reading()

    # --- the end

    def _end_one_side(self, other: asyncio.Transport) -> None:
        is_second = self._one_side_ended
        self._one_side_ended = True
        self._note_progress()
        can_half_close = self._client.can_write_eof() and self._backend.can_write_eof()
        if is_second or not can_half_close:
            self._backend.close()  # after its unsent bytes; then the exchange ends, which closes the client's
        elif not other.is_closing():
            other.write_eof()

    def on_deadline(self, now: float) -> None:
        """Close both sides if nothing has moved for too long."""
        limit_seconds = _CLOSING_SECONDS if self._one_side_ended else self._idle_seconds
        if self._moved_bytes != self._client_bytes + self._exchange.sent_bytes:
            self._note_progress()
        elif now - self._quiet_since < limit_seconds:
            self.deadline = min(now + _LOOK_SECONDS, self._quiet_since + limit_seconds)
        else:
            if not self._one_side_ended:
                logger.info("request %s: its WebSocket was idle and is closed", self._exchange.request_id)
            self.deadline = NEVER
            self._backend.abort()  # then the exchange ends

    def _note_progress(self) -> None:
        self._moved_bytes = self._client_bytes + self._exchange.sent_bytes
        self._quiet_since = now = self._deadlines.clock()
        self.deadline = now + min(_LOOK_SECONDS, self._idle_seconds / 4)
