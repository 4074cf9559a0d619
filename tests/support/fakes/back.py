"""The proxy's side of a backend: its connections with a running clock, and a sink that records the reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits
from inference_engine_proxy_server.wire.framing import ChunkedBody
from inference_engine_proxy_server.wire.idle_limit import IdleReserve
from inference_engine_proxy_server.wire.origin import Origin
from inference_engine_proxy_server.wire.reply_sink import ReplySource

__all__ = ["GET", "LIMITS", "Sink", "ask", "connections_to"]

LIMITS = BackendLimits(connect_seconds=5, first_byte_seconds=20, pause_seconds=20, idle_seconds=10)
GET = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"


class Sink:
    """Records a reply as it was relayed.

    Attributes:
        status, reason, fields, content_length: the head of the reply; ``status`` is 0 before it.
        pieces: the relayed pieces of the body.
        blocks: whole chunks that were relayed or written through; only with ``takes_chunks``.
        payload: of both, in order of arrival.
        on_piece: called with each piece.
    """

    def __init__(self, *, takes_chunks: bool = False) -> None:
        self.takes_chunks = takes_chunks
        self.source: ReplySource | None = None
        self.status = 0
        self.reason = b""
        self.fields = b""
        self.content_length: int | None = None
        self.pieces: list[bytes] = []
        self.blocks: list[bytes] = []
        self.payload = b""
        self._chunks = ChunkedBody()
        self.flushed = self.chunks_complete = False
        self.ended = 0
        self.sent_bytes = 0
        self.last_block = b""
        self.write_through: Callable[[bytes], None] = self._keep
        self.on_piece: Callable[[bytes], None] = self.pieces.append

    @property
    def chunks(self) -> Sink | None:
        return self if self.takes_chunks else None

    @property
    def pass_through(self) -> Sink | None:
        return self if self.takes_chunks and (self.flushed or self.sent_bytes) else None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        assert not self.status, "a reply begins once"
        self.status, self.reason, self.fields, self.content_length = status, reason, fields, content_length

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        self.begin(status, reason, fields, len(body))
        if body:
            self.write(body)

    def flush(self) -> None:
        self.flushed = True

    def write(self, payload: bytes) -> None:
        assert payload
        self.sent_bytes += len(payload)
        self.payload += payload
        self.on_piece(payload)

    def write_chunks(self, block: bytes) -> None:
        assert self.takes_chunks
        self.sent_bytes += len(block)
        self._keep(block)

    def write_last_chunks(self, block: bytes) -> None:
        self.write_chunks(block)
        self.chunks_complete = True

    def end(self) -> None:
        self.ended += 1

    def _keep(self, block: bytes) -> None:
        self.blocks.append(block)
        self.payload += b"".join(self._chunks.feed(block))


@asynccontextmanager
async def connections_to(
    url: str, limits: BackendLimits = LIMITS, reserve: IdleReserve | None = None
) -> AsyncIterator[BackendConnections]:
    """The connections to the backend at ``url``."""
    deadlines = Deadlines(tick_seconds=0.01)
    watch = asyncio.get_running_loop().create_task(deadlines.run())
    connections = BackendConnections(Origin.of(url), limits, deadlines, reserve=reserve)
    try:
        yield connections
    finally:
        connections.close()
        watch.cancel()
        await asyncio.wait([watch])


async def ask(
    connections: BackendConnections, request: bytes = GET, *, sink: Sink | None = None, is_head: bool = False
) -> Sink:
    """Send one request on a kept or a new connection, as the forwarder does; returns the reply."""
    sink = sink or Sink()
    connection = connections.take_idle() or await connections.connect()
    try:
        async with asyncio.timeout(20):
            await connection.request([request], sink, is_head=is_head)
    finally:
        connections.release(connection)
    return sink
