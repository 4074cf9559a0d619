"""A client's connection: reads requests one at a time and sends replies, with deadlines and back-pressure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Generic, cast

from inference_engine_proxy_server.errors import CapacityError, ClientError, ProxyError
from inference_engine_proxy_server.tasks.deadlines import NEVER
from inference_engine_proxy_server.tasks.light_task import LightTask
from inference_engine_proxy_server.wire.client_context import ClientContext, E
from inference_engine_proxy_server.wire.client_side import ClientReceiver
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.failures import failure_of, reset_on_close
from inference_engine_proxy_server.wire.forwarding import peer_of
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reading_pace import ReadingPace
from inference_engine_proxy_server.wire.request_head import RequestHead
from inference_engine_proxy_server.wire.request_reader import RequestReader, unreadable_head

__all__ = ["ClientConnection"]

_WRITE_BUFFER_BYTES = 64 * 1024  # above this the reply's source is paused; uvicorn and Pingora use the same
_LINGER_SECONDS = 2.0  # how long the rest of a rejected request is discarded, so that no RST overtakes the reply
_IN_USE_SECONDS = 1.0  # an idle connection that was in use so recently may be about to carry a request


class ClientConnection(asyncio.Protocol, Generic[E]):
    """One client's connection, which uvicorn creates and shuts down.

    During a reply the connection keeps reading, into a bounded look-ahead buffer: this detects a disconnect at once. A
    client that closes its sending half counts as gone, as in nginx.

    Args:
        context: shared by all connections of clients.
        connections, tasks: the host's sets of open connections and tasks; the host waits for them at shutdown.
    """

    write: Callable[[bytes], None]

    def __init__(self, context: ClientContext[E], connections: set[ClientConnection[E]], tasks: set[LightTask]) -> None:
        self._context = context
        self._limits = context.limits
        self._load = context.load
        self._first_look_seconds = min(context.limits.request_seconds, context.heartbeat_seconds)
        self._connections = connections
        self._tasks = tasks
        self.clock = context.deadlines.clock
        self.deadline = NEVER
        self._transport: asyncio.Transport
        self._reader: RequestReader
        self._pace: ReadingPace
        self._client = ""  # address and port of the peer
        self._ahead = b""  # bytes that arrived before the reply to the previous request was complete
        self._exchange: E | None = None
        self._receiver: ClientReceiver | None = None  # takes the client's bytes, which are no longer HTTP
        self._task: LightTask | None = None  # serves the exchange; while it runs, the exchange counts as a request
        self._cancelled: tuple[E, ProxyError] | None = None  # an exchange that an operator cancelled, and its error
        self._refused = False  # further bytes are discarded
        self._draining = False  # the current request is the last one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start reading, unless there are too many connections."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.write = self._transport.write
        host, self._client = peer_of(transport.get_extra_info("peername"))
        self._reader = RequestReader(self._context, host, self._client, self.write)
        self._pace = ReadingPace(self._transport, self._limits.write_stall_seconds)
        self.deadline = self.clock() + self._limits.keep_alive_seconds
        self._connections.add(self)
        self._context.deadlines.watch(self)
        if not self._load.enter(self):
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the current exchange."""
        del exc
        self._connections.discard(self)
        self._load.leave(self)
        self._context.deadlines.forget(self)
        exchange, self._exchange = self._exchange, None
        self._receiver = None
        if exchange is not None:
            exchange.client_left()
            if self._task is not None:
                self._load.requests -= 1
                self._task.cancel()
                self._task = None
            self._context.observe(exchange)
        self._reader.give_up()

    # --- requests in

    def data_received(self, data: bytes) -> None:
        """Take bytes of the next request, or buffer them during a reply."""
        if self._refused:
            return
        if self._exchange is not None or self._ahead or self._pace.is_behind:
            self._take_early(data)
        else:
            self._read(data)

    def _take_early(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.take(data)
            return
        self._ahead += data
        if len(self._ahead) > self._limits.head.total_bytes:
            self._transport.pause_reading()

    def _read(self, data: bytes) -> None:
        try:
            request = self._reader.feed(data)
        except (ClientError, CapacityError) as error:
            self._refuse(error)
            return
        if request is not None:
            self._begin(*request)
        else:
            self.deadline = self._reader.deadline

    def eof_received(self) -> bool:
        """The client closed its sending half: it does not wait for a reply, and cannot complete a request."""
        if self._receiver is not None:
            return self._receiver.end_client()
        if self._exchange is not None:
            self._transport.abort()
        elif (self._ahead or self._reader.has_begun) and not self._refused:
            self._refuse(ClientError("The request ended before it was complete.", code="incomplete_request"))
        return False

    def _begin(self, head: RequestHead, content: bytes) -> None:
        context, load = self._context, self._load
        self._ahead = self._reader.excess
        request_id = head.request_id or next(context.request_ids)
        self._exchange = exchange = context.new_exchange(self, head, content, request_id, head.sender)
        self.deadline = exchange.started_at + self._first_look_seconds
        if self._draining or load.ends_connections:
            exchange.keep_alive = False
        try:
            answering = context.handle(exchange)
        except ProxyError as error:
            exchange.fail(error)
            return
        load.requests += 1
        self._task = task = LightTask(answering, partial(self._served, exchange))
        self._tasks.add(task)
        task.run()

    def _served(self, exchange: E, task: LightTask, error: BaseException | None) -> None:
        self._tasks.discard(task)
        if error is not None or not exchange.done:
            cancelled, self._cancelled = self._cancelled, None
            if cancelled is not None and cancelled[0] is exchange:
                error = cancelled[1]
            is_late = self.clock() >= exchange.started_at + self._limits.request_seconds
            exchange.fail(failure_of(error, exchange.request_id, is_late=is_late))

    def _refuse(self, error: ProxyError) -> None:
        reader = self._reader
        head = reader.head or unreadable_head()
        may_stay = reader.is_in_step and not self._draining and not self._load.ends_connections
        self._refused = not may_stay
        reader.give_up()
        request_id = head.request_id or next(self._context.request_ids)
        client = head.sender or self._client
        self._exchange = exchange = self._context.new_exchange(self, head, b"", request_id, client)
        exchange.keep_alive = head.keep_alive and may_stay
        exchange.fail(error)

    def _turn_away(self) -> None:
        try:
            self._context.shed("connections", None)
        except CapacityError as error:
            if self._load.is_flooded:
                self._transport.abort()
            else:
                self._refuse(error)

    # --- replies out

    def comment_sent(self) -> None:
        """The client has just heard from the proxy."""
        if not self._pace.is_behind:
            self.deadline = self._look_at()

    def exchange_done(self, exchange: Exchange) -> None:
        """Continue with the next request, or close so that the client can tell a complete reply from a broken one."""
        if self._task is not None:
            self._load.requests -= 1
        self._exchange = self._task = None
        self._context.observe(exchange)  # type: ignore[arg-type]  # made by the context's new_exchange
        self._reader.release()
        if self._refused:
            self._linger()
        elif exchange.outcome is Outcome.BROKEN:
            self._break_off(exchange)
        elif not exchange.keep_alive or self._draining:
            self.close()
        else:
            self._await_next_request()

    @property
    def is_behind(self) -> bool:
        """See :class:`ClientSide`."""
        return self._pace.is_behind

    def pause_writing(self) -> None:
        """The client reads slower than the reply arrives: pause the source and watch the client's progress."""
        self._watch_pace()
        if self._exchange is not None and (source := self._exchange.source) is not None:
            source.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._pace.forget()
        self.deadline = self._look_at()
        if self._transport.is_closing():
            self._watch_pace()  # a part of the last reply is still unsent
        elif self._exchange is None:
            self._await_next_request()
        elif self._exchange.source is not None:
            self._exchange.source.resume_reading()

    def switch_protocols(self, receiver: ClientReceiver) -> tuple[asyncio.Transport, bytes]:
        """See :class:`.ClientSide`."""
        self._receiver = receiver
        early, self._ahead = self._ahead, b""
        if not self._transport.is_closing():
            self._transport.resume_reading()  # paused if much arrived early
        return self._transport, early

    def _watch_pace(self) -> None:
        self._pace.watch(self.clock())
        self.deadline = min(self._pace.deadline, self._reply_deadline())

    def _reply_deadline(self) -> float:
        return NEVER if self._exchange is None else self._exchange.started_at + self._limits.request_seconds

    def _look_at(self) -> float:
        """When to look next whether the client needs a heartbeat, or the reply is late."""
        return min(self.clock() + self._context.heartbeat_seconds, self._reply_deadline())

    def _await_next_request(self) -> None:
        if self._pace.is_behind or self._transport.is_closing():
            return
        self.deadline = self.clock() + self._limits.keep_alive_seconds
        if self._ahead:
            # In the next iteration: a reply may complete before this returns, and each request would add recursion.
            asyncio.get_running_loop().call_soon(self._read_ahead)

    def _read_ahead(self) -> None:
        if self._ahead and self._exchange is None and not (self._pace.is_behind or self._transport.is_closing()):
            received, self._ahead = self._ahead, b""
            self._read(received)
            if len(self._ahead) <= self._limits.head.total_bytes:  # otherwise the buffer would grow with each request
                self._transport.resume_reading()

    def _linger(self) -> None:
        self.deadline = self.clock() + _LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _break_off(self, exchange: Exchange) -> None:
        if exchange.ends_with_connection:
            reset_on_close(self._transport)
        self.close()

    def close(self) -> None:
        """Close when the client has received what was sent; also called to make room for another connection."""
        self._watch_pace()
        self._transport.close()

    # --- for operators

    @property
    def exchange(self) -> E | None:
        """The request that is being served; ``None`` if there is none."""
        return self._exchange if self._task is not None else None

    def cancel(self, cause: ProxyError) -> None:
        """End the request that is being served with ``cause``; its backend sees a disconnect."""
        if self._exchange is not None and self._task is not None:
            self._cancelled = self._exchange, cause
            self._task.cancel()

    # --- the host's side

    def on_deadline(self, now: float) -> None:
        """The client was too slow to send a request, read a reply or reuse the connection; or it waits for a reply."""
        if self._task is not None and now >= self._reply_deadline():
            self.deadline = NEVER
            self._task.cancel()
        elif self._pace.is_behind and self._pace.goes_on(now):
            self.deadline = min(self._pace.deadline, self._reply_deadline())
        elif self._exchange is not None and not (self._pace.is_behind or self._refused):
            self.deadline = self._look_at()
            self._context.send_heartbeat(self._exchange)
        elif self._pace.is_behind or self._refused or self._transport.get_write_buffer_size():
            self._transport.abort()
        elif self._reader.has_begun:
            self._refuse(ClientError("The request took too long to arrive.", status=408, code="request_timeout"))
        else:
            self.close()

    @property
    def is_idle(self) -> bool:
        """Whether the connection waits for a request of which no byte has arrived."""
        is_busy = self._exchange is not None or self._reader.has_begun or self._pace.is_behind or self._refused
        return not is_busy and not self._transport.get_write_buffer_size()

    def shutdown(self) -> None:
        """Finish the current request, then close; called by the host.

        On a connection that was used or opened just now, a request may be on its way, so it is closed a little later.
        """
        self._draining = True
        if self._exchange is not None:
            self._exchange.keep_alive = False
        elif not self._ahead and not self._reader.has_begun:
            now = self.clock()
            if now - (self.deadline - self._limits.keep_alive_seconds) < _IN_USE_SECONDS:
                self.deadline = now + _IN_USE_SECONDS
            else:
                self.close()
