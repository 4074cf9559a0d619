"""Real client connections with a handler of the test, and a client that sends raw bytes."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.tasks.light_task import LightTask
from inference_engine_proxy_server.wire.client_connection import ClientConnection
from inference_engine_proxy_server.wire.client_context import ClientContext, ClientLimits
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.forwarding import Forwarding
from inference_engine_proxy_server.wire.framing import ChunkedBody
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead

__all__ = ["LIMITS", "Client", "Front", "Handler", "Reply", "shed", "until"]

Handler = Callable[[Any], Coroutine[None, None, None]]
"""Answers an exchange of the front."""

LIMITS = ClientLimits(
    head=HeadLimits(line_bytes=1024, total_bytes=4096, field_count=20),
    body_bytes=100_000,
    header_seconds=30,
    body_seconds=30,
    body_total_seconds=30,
    request_seconds=NEVER,
    keep_alive_seconds=30,
    write_stall_seconds=30,
)
_PATIENCE_SECONDS = 20.0  # deadline for expected events
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for ``condition``, checking often."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - the code under test has no events for tests
            await asyncio.sleep(0.002)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply as a client reads it; ``fields`` by lower-case name."""

    status: int
    version: str
    fields: dict[str, str]
    body: bytes


class Client:
    """A client connection that a test controls."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, block: bytes) -> None:
        self._writer.write(block)

    async def sent(self) -> None:
        """Wait until the kernel has accepted nearly all sent bytes."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await self._writer.drain()

    async def ask(self, request: bytes, *, has_body: bool = True) -> Reply:
        self.send(request)
        return await self.reply(has_body=has_body)

    async def reply(self, *, has_body: bool = True) -> Reply:
        """Read one whole reply with any framing."""
        status, version, fields = await self.head()
        if not has_body:
            body = b""
        elif "content-length" in fields:
            body = await self.read(int(fields["content-length"]))
        elif "transfer-encoding" in fields:
            body = await self._chunked()
        else:
            body = await self.rest()
        return Reply(status, version, fields, body)

    async def head(self) -> tuple[int, str, dict[str, str]]:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            section = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = section.split("\r\n")[:-2]
        version, status = first.split(" ")[:2]
        return int(status), version, {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await self._reader.readexactly(size)

    async def some(self) -> bytes:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await self._reader.read(65536)

    async def rest(self) -> bytes:
        """Read everything until the connection ends."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await self._reader.read()

    async def is_reset(self) -> bool:
        """Whether the connection ends with RST instead of FIN."""
        try:
            await self.rest()
        except ConnectionResetError:
            return True
        return False

    def stop_reading(self) -> None:
        """Read nothing more from the socket."""
        cast(asyncio.Transport, self._writer.transport).pause_reading()

    def half_close(self) -> None:
        self._writer.write_eof()

    def leave(self) -> None:
        """Close orderly (FIN)."""
        self._writer.close()

    def reset(self) -> None:
        """Break the connection (RST); does nothing if it is closed already."""
        if self._writer.is_closing():
            return
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()

    async def _chunked(self) -> bytes:
        body = ChunkedBody()
        payload = b""
        while not body.complete:
            payload += b"".join(body.feed(await self.read(1)))
        return payload


def shed(reason: str, head: RequestHead | None) -> None:
    """Refuse everything beyond a limit, except ``/health``."""
    if head is None or head.path != "/health":
        raise CapacityError(reason, code="overloaded", retry_after_seconds=1)


class Front:
    """A listener on 127.0.0.1 whose connections pass their requests to ``handle``.

    ``send_buffer_bytes``: size of the kernel's send buffer; 0 for the system's default (megabytes).

    Attributes:
        observed: the finished exchanges, each as often as it was observed.
        connections, tasks: as uvicorn keeps them.
        load: the load of all clients, without limits until a test sets some.
    """

    def __init__(
        self,
        handle: Handler,
        limits: ClientLimits = LIMITS,
        *,
        send_buffer_bytes: int = 0,
        classify: Callable[[RequestHead], Destination] = lambda _: Destination.WORK,
        new_exchange: Callable[..., Exchange] = Exchange,
        heartbeat_seconds: float = NEVER,
        send_heartbeat: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self.observed: list[Any] = []
        self.connections: set[ClientConnection[Exchange]] = set()
        self.tasks: set[LightTask] = set()
        self._deadlines = Deadlines(tick_seconds=0.01)
        self.load = Load(self._deadlines.clock)
        ids = (f"new-{number}" for number in itertools.count(1))
        self._context = ClientContext(
            limits,
            self._deadlines,
            self.load,
            Forwarding((), name="this-proxy", is_tls=False),
            ids,
            new_exchange,
            classify,
            shed,
            lambda _: None,
            heartbeat_seconds,
            send_heartbeat,
            handle,
            self.observed.append,
        )
        self._clients: list[Client] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        if send_buffer_bytes:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        self._server: asyncio.Server
        self._watch: asyncio.Task[None]

    async def connect(self, *, receive_buffer_bytes: int = 0) -> Client:
        """A new client; a small buffer bounds the bytes that the kernel accepts unread."""
        client = socket.socket()
        client.setblocking(False)
        if receive_buffer_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(client, self._listener.getsockname())
        self._clients.append(Client(*await asyncio.open_connection(sock=client, limit=receive_buffer_bytes or 65536)))
        return self._clients[-1]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._watch = loop.create_task(self._deadlines.run())
        self._server = await loop.create_server(
            lambda: ClientConnection(self._context, self.connections, self.tasks), sock=self._listener
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for client in self._clients:
            client.reset()
        try:
            if error is None:
                await until(lambda: not self.connections and not self.tasks)
        finally:
            self._watch.cancel()
            await asyncio.wait([self._watch])
