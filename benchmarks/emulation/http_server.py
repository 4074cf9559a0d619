"""HTTP/1.1 for emulated engines: many listeners in one process, and little work for each event."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

import h11

__all__ = ["Exchange", "Fields", "Habits", "Handler", "Listener"]

Fields = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Habits:
    """How an engine treats kept-alive connections.

    Attributes:
        idle_seconds: time after which it closes an idle connection.
        most_requests: number of requests on a connection, the last of which is answered with ``Connection: close``;
            ``None`` for no limit.
        announcement: fields of a reply that leaves the connection open.
    """

    idle_seconds: float = 5.0
    most_requests: int | None = None
    announcement: Fields = ()


class Handler(Protocol):
    """Answers requests; may answer later."""

    def __call__(self, exchange: Exchange) -> None: ...


class Exchange:
    """One request and its reply.

    Attributes:
        is_open: the client waits for more of the reply.
    """

    __slots__ = ("_connection", "body", "is_open", "method", "path")

    def __init__(self, connection: _Connection, method: str, path: str, body: bytes) -> None:
        self._connection = connection
        self.method = method
        self.path = path
        self.body = body
        self.is_open = True

    def reply(self, fields: Fields, body: bytes, status: int = 200, *, closes: bool = False) -> None:
        """Send a whole reply."""
        self.begin([*fields, (b"Content-Length", b"%d" % len(body))], status, closes=closes)
        self.send(b"" if self.method == "HEAD" else body)
        self.end()

    def begin(self, fields: Fields, status: int = 200, *, closes: bool = False) -> None:
        """Send the head of a reply."""
        if self.is_open:
            self._connection.send_head(fields, status, closes=closes)

    def send(self, payload: bytes) -> None:
        """Send a part of the body, in a chunk of its own if the head says so."""
        if self.is_open and payload:
            self._connection.send(h11.Data(payload))

    def end(self) -> None:
        """Complete the reply."""
        if self.is_open:
            self.is_open = False
            self._connection.end()


class _Connection(asyncio.Protocol):
    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._exchange: Exchange | None = None
        self._requests = 0

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._listener.connections.add(self)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        self._read()

    def eof_received(self) -> None:
        self._http.receive_data(b"")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._idle is not None:
            self._idle.cancel()
        if self._exchange is not None:
            self._exchange.is_open = False
        self._listener.connections.discard(self)
        self._transport = None

    def retire(self) -> None:
        """Close after the current reply."""
        if self._exchange is None:
            self._close()

    # --- replies

    def send_head(self, fields: Fields, status: int, *, closes: bool) -> None:
        habits = self._listener.habits
        is_last = closes or self._requests == habits.most_requests or not self._listener.is_open
        is_last = is_last or self._http.their_state is h11.MUST_CLOSE
        ending: Fields = [(b"Connection", b"close")] if is_last else habits.announcement
        head = h11.Response(
            status_code=status, headers=[*fields, *ending], reason=HTTPStatus(status).phrase.encode("ascii")
        )
        self.send(head)

    def send(self, event: h11.Event) -> None:
        payload = self._http.send(event)
        if self._transport is not None and payload:
            self._transport.write(payload)

    def end(self) -> None:
        self.send(h11.EndOfMessage())
        self._exchange = None
        is_over = not self._listener.is_open
        if is_over or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._close()
            return
        self._http.start_next_cycle()
        self._wait()
        self._read()

    # --- requests

    def _read(self) -> None:
        try:
            while isinstance(event := self._http.next_event(), h11.Event):
                self._take(event)
        except h11.RemoteProtocolError:
            self._close()

    def _take(self, event: h11.Event) -> None:
        if isinstance(event, h11.Request):
            if self._idle is not None:
                self._idle.cancel()
            self._request, self._body = event, bytearray()
            if self._http.they_are_waiting_for_100_continue:
                self.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        elif isinstance(event, h11.Data):
            self._body += event.data
        elif isinstance(event, h11.EndOfMessage) and self._request is not None:
            self._requests += 1
            method, target = self._request.method.decode("ascii"), self._request.target.decode("ascii")
            self._exchange = Exchange(self, method, target.partition("?")[0], bytes(self._body))
            self._listener.handle(self._exchange)
        elif isinstance(event, h11.ConnectionClosed):
            self._close()

    def _wait(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(self._listener.habits.idle_seconds, self._close)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Listener:
    """A port of one engine on 127.0.0.1.

    Attributes:
        connections: the open ones.
    """

    def __init__(self, handle: Handler, habits: Habits, port: int) -> None:
        self.handle = handle
        self.habits = habits
        self.connections: set[_Connection] = set()
        self._port = port
        self._server: asyncio.Server | None = None

    @property
    def is_open(self) -> bool:
        """New connections are accepted."""
        return self._server is not None

    async def open(self) -> None:
        """Accept connections. Raises OSError if the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self._port, backlog=1024)

    def close(self) -> None:
        """Refuse new connections, and close each open one after its current reply."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.retire()
