"""Clients as strict as the HTTP libraries of SDKs: they detect failed, truncated and missing answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, cast

__all__ = ["Burst", "Load", "Result", "Stream", "read_stream"]

_PAUSE_SECONDS = 0.05  # after a failure; otherwise a proxy that fails fast would get thousands of requests per second
_MESSAGES = [{"role": "user", "content": "Hello, how are you today?"}]


def _request(*, stream: bool) -> bytes:
    body = json.dumps({"model": "m", "messages": _MESSAGES, "max_tokens": 256, "stream": stream})
    fields = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n{body}".encode()


_PLAIN, _STREAM = _request(stream=False), _request(stream=True)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one request; times by the monotonic clock.

    Attributes:
        failure: ``None`` for a good answer, else a status, ``broken``, ``refused`` or ``stuck`` (no answer at the end).
    """

    started: float
    ended: float
    failure: str | None

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class _Connection(asyncio.Protocol):
    """Receives one complete answer at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[str | None] | None = None
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[str | None]:
        """Send a request; the future yields how the answer failed, or ``None`` for a good one."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        head = head.lower()
        _, _, length = head.partition(b"\r\ncontent-length:")
        if length:
            whole = len(body) >= int(length.split(b"\r\n", 1)[0])
        else:
            whole = body.endswith(b"0\r\n\r\n") and b"chunked" in head
        if whole:
            self._buffer = b""
            if b"connection: close" in head:
                self._close()
            status = head.split(b" ", 2)[1].decode()
            self._finish(None if status == "200" else status)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.is_open = False
        self._finish("broken")

    def _close(self) -> None:
        self.is_open = False
        self.transport.close()

    def _finish(self, failure: str | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(failure)


async def _connect(port: int) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", port)
    return connection


@dataclass(slots=True)
class Load:
    """Closed-loop clients, each with a persistent connection: the next request follows the answer."""

    port: int
    clients: int = 100
    results: list[Result] = field(default_factory=list)

    async def run(self, script: Callable[[], Awaitable[None]], grace_seconds: float) -> None:
        """Send requests while the script runs, then wait for the grace period; answers still missing are stuck."""
        running = asyncio.Event()
        running.set()
        tasks: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(self._client(running)) for _ in range(self.clients)]
            await script()
            running.clear()
            await asyncio.wait(tasks, timeout=grace_seconds)
            for task in tasks:
                task.cancel()

    async def _client(self, running: asyncio.Event) -> None:
        connection: _Connection | None = None
        try:
            while running.is_set():
                started = time.monotonic()
                failure: str | None = "stuck"
                try:
                    if connection is None or not connection.is_open:
                        connection = await _connect(self.port)
                    failure = await connection.ask(_PLAIN)
                except OSError:
                    failure = "refused"
                finally:
                    self.results.append(Result(started, time.monotonic(), failure))
                if failure is not None:
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            if connection is not None:
                connection.transport.abort()


@dataclass(slots=True)
class Burst:
    """Simultaneous requests, each on its own connection opened beforehand."""

    port: int
    connections: list[_Connection] = field(default_factory=list)

    async def send(self, plain: int, streams: int = 0) -> list[asyncio.Future[str | None]]:
        self.connections = [await _connect(self.port) for _ in range(plain + streams)]
        requests = [_PLAIN] * plain + [_STREAM] * streams
        return [one.ask(request) for one, request in zip(self.connections, requests, strict=True)]

    def leave(self) -> None:
        """Close all connections gracefully, with a FIN."""
        for connection in self.connections:
            connection.transport.close()


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream as its client saw it.

    Attributes:
        close: when the connection closed: ``clean`` (after the last chunk), ``early`` (before it), or ``never``.
    """

    text: str
    close: Literal["clean", "early", "never"]

    def tokens_of(self, engine: int) -> int:
        return self.text.count(f'engine{engine}"')

    @property
    def ending(self) -> str:
        if self.close != "clean":
            ending = "broken off" if self.close == "early" else "waits for ever"
        elif "data: [DONE]" in self.text:
            ending = "[DONE]"
        else:
            ending = "clean end, no [DONE]"
        return f"error event, {ending}" if '"error"' in self.text else ending


async def read_stream(port: int, *, patience_seconds: float) -> Stream:
    """Read one stream to its end, however it ends."""
    text = b""
    close: Literal["clean", "early", "never"] = "early"
    try:
        async with asyncio.timeout(patience_seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(_STREAM)
                while close != "clean" and (more := await reader.read(65536)):
                    text += more
                    if text.endswith(b"\r\n0\r\n\r\n"):
                        close = "clean"
            finally:
                writer.close()
    except TimeoutError:
        close = "never"
    except OSError:
        close = "early"  # reset
    return Stream(text.decode(), close)
