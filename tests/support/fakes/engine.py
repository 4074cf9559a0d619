"""An engine that follows the script of a test, over real sockets.

::

    async def dies_in_its_reply(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        connection.reset()

    async with FakeEngine(dies_in_its_reply) as engine:
        ...  # ask engine.url
        assert engine.requests == [...]
        assert await engine.connections[0].ended == "reset"

The script runs once for each connection; when it returns, the connection stays open. ``answering`` covers the usual
case. A script waits for the ``cue`` of its connection, never for a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Self, cast

__all__ = ["EngineConnection", "FakeEngine", "Script", "answering", "http_reply"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, zero seconds
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


class EngineConnection(asyncio.Protocol):
    """One connection as the engine sees it.

    Attributes:
        received: all received bytes, including those of requests not yet read.
        requests: the raw requests that :meth:`request` has read.
        ended: done when the peer ended the connection: ``"eof"`` or ``"reset"``.
        cue: set by the test when a script waits for it.
        ended_at: the time of that, by ``time.monotonic``; 0 before.
    """

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._taken = 0
        self._changed = asyncio.Event()
        self._transport: asyncio.Transport
        self.received = bytearray()
        self.requests: list[bytes] = []
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.cue = asyncio.Event()
        self.ended_at = 0.0

    async def request(self) -> bytes:
        """Read the next request: header section and a body of the announced length.

        Raises:
            ConnectionError: the connection ended before it was complete.
        """
        await self._until(lambda: self.received.find(b"\r\n\r\n", self._taken) >= 0)
        head_end = self.received.find(b"\r\n\r\n", self._taken) + 4
        length = _CONTENT_LENGTH.search(self.received, self._taken, head_end)
        end = head_end + (int(length[1]) if length else 0)
        await self._until(lambda: len(self.received) >= end)
        request = bytes(self.received[self._taken : end])
        self._taken = end
        self.requests.append(request)
        self._engine.requests.append(request)
        return request

    async def first_bytes(self) -> None:
        """Wait for the first bytes of the next request."""
        await self._until(lambda: len(self.received) > self._taken)

    def send(self, *blocks: bytes) -> None:
        """Send the bytes in one write."""
        self._transport.write(b"".join(blocks))

    def finish(self) -> None:
        """Close orderly after the sent bytes (FIN)."""
        self._transport.close()

    def end_sending(self) -> None:
        """Close the sending half after the sent bytes."""
        self._transport.write_eof()

    def reset(self) -> None:
        """Break the connection (RST); does nothing if it is closed already."""
        if self._transport.is_closing():
            return
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def stop_reading(self) -> None:
        """Read nothing more from the socket until :meth:`go_on_reading`."""
        self._transport.pause_reading()

    def go_on_reading(self) -> None:
        """Resume reading."""
        self._transport.resume_reading()

    @property
    def unsent_bytes(self) -> int:
        """Number of sent bytes that the kernel has not accepted yet."""
        return self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._engine.accepted(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._changed.set()

    def eof_received(self) -> bool:
        self._end("eof")
        return True  # the script decides when this half is closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("reset" if exc is not None else "closed by the engine")

    def _end(self, how: str) -> None:
        if not self.ended.done():
            self.ended_at = time.monotonic()
            self.ended.set_result(how)
        self._changed.set()

    async def _until(self, is_enough: Callable[[], bool]) -> None:
        """Wait for more bytes; ``is_enough`` must not copy what has come, which may be many megabytes."""
        while not is_enough():
            if self.ended.done():
                raise ConnectionError(self.ended.result())
            self._changed.clear()
            await self._changed.wait()


Script = Callable[[EngineConnection], Coroutine[None, None, None]]


class FakeEngine:
    """A listener that runs ``script`` for each connection while its context is entered.

    An exception of the script, other than a ConnectionError, is raised at exit.

    Attributes:
        requests: all requests read, in order.
        connections: all accepted connections, in order.
        host: where it listens. port: 0 for a free one, until the context is entered.
        url: its base URL.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self.connections: list[EngineConnection] = []
        self.host, self.port = "127.0.0.1", 0
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def accepted(self, connection: EngineConnection) -> None:
        """Start the script for a new connection."""
        self.connections.append(connection)
        self._tasks.append(asyncio.get_running_loop().create_task(self._play(connection)))

    def refuse(self) -> None:
        """Stop listening: new connections are refused, open ones stay."""
        self._server.close()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: EngineConnection(self), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for _ in range(20):  # a connection being accepted needs some iterations of the event loop
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        for connection in self.connections:
            connection.reset()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports close
        failures = [result for result in results if isinstance(result, Exception)]
        if failures and error is None:
            raise failures[0]

    async def _play(self, connection: EngineConnection) -> None:
        with contextlib.suppress(ConnectionError):  # the peer disconnected in the middle of it
            await self.script(connection)


def http_reply(body: bytes = b"hello", status: int = 200, fields: bytes = b"") -> bytes:
    """A whole reply with Content-Length; ``fields``: lines that end with CRLF."""
    return b"HTTP/1.1 %d OK\r\n%bcontent-length: %d\r\n\r\n%b" % (status, fields, len(body), body)


def answering(*replies: bytes) -> Script:
    """Answers each request with the next of ``replies``, on any connection; the last one is repeated for ever."""
    waiting = list(replies)

    async def script(connection: EngineConnection) -> None:
        while True:
            await connection.request()
            connection.send(waiting.pop(0) if len(waiting) > 1 else waiting[0])

    return script
