"""A client's connection: requests in, one at a time and each whole; replies out; deadlines and back-pressure.

uvicorn makes one of these for each connection it accepts, and shuts it down.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
from collections.abc import Callable
from typing import cast

from inference_engine_proxy_server.errors import CapacityError, ClientError, ProxyError
from inference_engine_proxy_server.wire.client_context import ClientContext
from inference_engine_proxy_server.wire.deadlines import NEVER
from inference_engine_proxy_server.wire.exchange import Exchange, Outcome
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.request_body import RequestBody
from inference_engine_proxy_server.wire.request_head import RequestHead, check_lines, parse_request_head

__all__ = ["CLIENT_GONE", "ClientConnection"]

CLIENT_GONE = 499
"""Status, in logs and metrics only, of a request whose client left before it was answered (nginx's number)."""

_WRITE_BUFFER_BYTES = 64 * 1024  # above it the reply's source is paused; uvicorn and Pingora use the same
_LINGER_SECONDS = 2.0  # how long a refused request's rest is read and dropped, so that no RST overtakes our answer
_BLANK_LINES = re.compile(rb"\A(?:\r\n)++")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, zero seconds

logger = logging.getLogger(__name__)


class ClientConnection(asyncio.Protocol):
    """One client's connection.

    While a reply is under way the connection goes on reading, into a bounded look-ahead: only so is a client's
    leaving seen at once. A client that closes its sending half is taken to have left, as nginx does.

    Args:
        context: what it shares with the others.
        connections, tasks: the host's books of what is open, which it waits for when it shuts down.
    """

    write: Callable[[bytes], None]

    def __init__(
        self, context: ClientContext, connections: set[ClientConnection], tasks: set[asyncio.Task[None]]
    ) -> None:
        self._context = context
        self._limits = context.limits
        self._connections = connections
        self._tasks = tasks
        self.clock = context.deadlines.clock
        self.deadline = NEVER
        self._transport: asyncio.Transport
        self._client = ""  # the peer's address and port
        self._peer = ""
        self._is_trusted = False  # the peer is a proxy whose word about its clients counts
        self._received = b""  # of a header section, or of what the client sent ahead
        self._memory = HeadMemory[RequestHead]()
        self._head: RequestHead | None = None  # of the request whose body is being read
        self._body: RequestBody | None = None
        self._arriving = False  # the header section's deadline runs, whatever has come so far
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._stalled_bytes = 0  # the client is behind by this much since the deadline was set; 0: it keeps up
        self._refused = False  # what still comes is dropped
        self._draining = False  # no request after this one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start reading."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.write = self._transport.write
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else "unknown"
        self._client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local"
        self._is_trusted = self._context.forwarding.trusts(self._peer)
        self.deadline = self.clock() + self._limits.keep_alive_seconds
        self._connections.add(self)
        self._context.deadlines.watch(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End whatever the client was waiting for."""
        del exc
        self._connections.discard(self)
        self._context.deadlines.forget(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_left()
            if not exchange.begun:
                exchange.status = CLIENT_GONE
            if self._task is not None:
                self._task.cancel()
            self._context.observe(exchange)

    # --- requests in

    def data_received(self, data: bytes) -> None:
        """Take what the client sent: a part of its next request, or something sent ahead."""
        if self._refused:
            return
        if self._exchange is not None or self._stalled_bytes:
            self._received += data
            if len(self._received) > self._limits.head.total_bytes:
                self._transport.pause_reading()
            return
        try:
            if self._body is not None:
                self._read_body(self._body, data)
            else:
                self._read_head(self._received + data if self._received else data)
        except ClientError as error:
            self._refuse(error)

    def eof_received(self) -> None:
        """The client sends no more: nobody waits for a reply under way, and a half-sent request stays half."""
        if self._exchange is not None:
            self._transport.abort()
        elif (self._received or self._head is not None) and not self._refused:
            self._refuse(ClientError("The request ended before it was complete.", code="incomplete_request"))

    def _read_head(self, received: bytes) -> None:
        limits = self._limits.head
        if received.startswith(b"\r\n"):  # RFC 9112, 2.2: some clients end a body with a line break too many
            received = _BLANK_LINES.sub(b"", received, count=1)
        end = received.find(b"\r\n\r\n", 0, limits.total_bytes)
        if end < 0:
            self._await_rest_of_head(received)
            return
        section = received[: end + 2]
        head = self._memory.recall(section)
        if head is None:
            head = self._parse(section)
            self._memory.remember(section, head)
        self._head = head
        self._received = b""
        head.access = self._context.admit(head)
        rest = received[end + 4 :]
        if head.content_length == len(rest) <= self._limits.body_bytes:  # the usual case: all of it in one read
            self._begin(head, rest, b"")
            return
        body = self._body = RequestBody(head, self._limits.body_bytes)
        if head.expects_continue and not rest and not body.complete:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._read_body(body, rest)

    def _parse(self, section: bytes) -> RequestHead:
        self._head = head = parse_request_head(section, self._limits.head)
        forwarding = self._context.forwarding
        head.sender = (self._is_trusted and forwarding.client_of(head)) or self._client
        head.passed_on += forwarding.describe(head, self._peer, is_trusted=self._is_trusted)
        return head

    def _await_rest_of_head(self, received: bytes) -> None:
        limits = self._limits.head
        check_lines(received[: limits.total_bytes], limits)
        if len(received) > limits.total_bytes:
            raise ClientError("The request's header section is too long.", status=431, code="headers_too_large")
        if not self._arriving:
            self._arriving = True
            self.deadline = self.clock() + self._limits.header_seconds
        self._received = received

    def _read_body(self, body: RequestBody, block: bytes) -> None:
        if not body.complete:
            body.feed(block)
            block = body.excess
        if body.complete and self._head is not None:
            self._begin(self._head, body.content, block)
        else:
            self.deadline = self.clock() + self._limits.body_seconds

    def _begin(self, head: RequestHead, content: bytes, excess: bytes) -> None:
        self._head = self._body = None
        self._arriving = False
        self._received = excess
        self.deadline = NEVER
        request_id = head.request_id or next(self._context.request_ids)
        self._exchange = exchange = Exchange(self, head, content, request_id, head.sender)
        if self._draining:
            exchange.keep_alive = False
        self._task = task = asyncio.get_running_loop().create_task(self._serve(exchange))
        self._tasks.add(task)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._context.handle(exchange)
        except ProxyError as error:
            exchange.fail(error)
        except asyncio.CancelledError:
            exchange.fail(CapacityError("The proxy is shutting down.", code="shutting_down", retry_after_seconds=1))
            raise
        except Exception:
            logger.exception("request %s: unexpected error", exchange.request_id)
            exchange.fail(ProxyError("Something went wrong inside the proxy."))
        else:
            if not exchange.done:
                exchange.fail(ProxyError("The proxy ended its reply too early."))
        finally:
            self._tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _refuse(self, error: ClientError) -> None:
        head = self._head or _unreadable_head()
        self._refused = True
        self._received = b""
        request_id = head.request_id or next(self._context.request_ids)
        self._exchange = exchange = Exchange(self, head, b"", request_id, head.sender or self._client)
        exchange.keep_alive = False
        exchange.fail(error)

    # --- replies out

    def exchange_done(self, exchange: Exchange) -> None:
        """Go on to the next request, or end the connection in the way that tells the client what happened."""
        self._exchange = self._task = None
        self._context.observe(exchange)
        if self._refused:
            self._linger()
        elif exchange.outcome is Outcome.BROKEN:
            self._break_off(exchange)
        elif not exchange.keep_alive or self._draining:
            self._close()
        else:
            self._await_next_request()

    def pause_writing(self) -> None:
        """The client reads slower than the reply comes: stop its source, and see that the client goes on."""
        self._stalled_bytes = self._transport.get_write_buffer_size()
        self.deadline = self.clock() + self._limits.write_stall_seconds
        if self._exchange is not None and self._exchange.source is not None:
            self._exchange.source.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._stalled_bytes = 0
        self.deadline = NEVER
        if self._transport.is_closing():
            self._watch_closing()  # a part of the last reply still waits for the client
        elif self._exchange is None:
            self._await_next_request()
        elif self._exchange.source is not None:
            self._exchange.source.resume_reading()

    def _await_next_request(self) -> None:
        if self._stalled_bytes or self._transport.is_closing():
            return
        self.deadline = self.clock() + self._limits.keep_alive_seconds
        if self._received:
            received, self._received = self._received, b""
            self.data_received(received)
            if len(self._received) <= self._limits.head.total_bytes:  # else each request would let in a read more
                self._transport.resume_reading()

    def _linger(self) -> None:
        self.deadline = self.clock() + _LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _break_off(self, exchange: Exchange) -> None:
        if exchange.ends_with_connection:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._close()

    def _close(self) -> None:
        if not self._stalled_bytes:
            self._watch_closing()
        self._transport.close()

    def _watch_closing(self) -> None:
        self._stalled_bytes = self._transport.get_write_buffer_size()
        self.deadline = self.clock() + self._limits.write_stall_seconds

    # --- the host's side

    def on_deadline(self, now: float) -> None:
        """The client took too long: with its request, to take its reply, or to ask again."""
        waiting_bytes = self._transport.get_write_buffer_size()
        if 0 < waiting_bytes < self._stalled_bytes:
            self._stalled_bytes = waiting_bytes
            self.deadline = now + self._limits.write_stall_seconds
        elif waiting_bytes or self._refused or self._transport.is_closing():
            self._transport.abort()
        elif self._received or self._head is not None:
            self._refuse(ClientError("The request took too long to arrive.", status=408, code="request_timeout"))
        else:
            self._close()

    def shutdown(self) -> None:
        """Serve what has begun, then close (called by the host)."""
        self._draining = True
        if self._exchange is not None:
            self._exchange.keep_alive = False
        elif not self._received and self._head is None:
            self._close()


def _unreadable_head() -> RequestHead:
    """Stands for a header section that could not be read, so that its refusal is answered and logged as any reply."""
    head = RequestHead()
    head.method = head.path = "-"
    head.target = b"-"
    head.host = b""
    head.minor_version = 1
    head.keep_alive = False
    head.content_length = head.request_id = None
    head.chunked = head.expects_continue = False
    head.authorization = head.api_key = None
    head.credentials = b""
    head.way = {}
    head.passed_on = b""
    head.sender = ""
    head.access = None
    return head
