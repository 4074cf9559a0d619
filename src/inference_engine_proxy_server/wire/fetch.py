"""One small request of our own to a backend, its reply collected whole: how its state is asked for."""

from __future__ import annotations

import asyncio

from inference_engine_proxy_server.errors import InvalidReply
from inference_engine_proxy_server.wire.backend_connections import BackendConnections
from inference_engine_proxy_server.wire.exchange import ReplySource

__all__ = ["fetch"]


async def fetch(
    connections: BackendConnections,
    path: str,
    *,
    json_body: bytes | None = None,
    credentials: bytes = b"",
    timeout_seconds: float,
    limit_bytes: int,
) -> _Collected:
    """Ask a backend for ``path`` on a connection of its own.

    Args:
        json_body: is sent by ``POST``; ``None``: nothing is sent, by ``GET``.
        credentials: header lines that it knows us by.

    Returns:
        The reply's ``status`` and ``body``.

    Raises:
        TimeoutError: not complete in time.
        BackendError: no connection, or it broke, or the reply is not valid HTTP or longer than ``limit_bytes``.
    """
    collected = _Collected(limit_bytes)
    origin = connections.origin
    line, fields, body = b"GET", b"", b""
    if json_body is not None:
        line, body = b"POST", json_body
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    section = (
        b"%b %b%b HTTP/1.1\r\nhost: %b\r\nuser-agent: inference-proxy\r\naccept: */*\r\n%b%bconnection: close\r\n\r\n"
    ) % (line, origin.prefix, path.encode(), origin.authority, credentials, fields)
    async with asyncio.timeout(timeout_seconds):
        connection = await connections.connect()
        try:
            await connection.request([section, body], collected, is_head=False)
        finally:
            connections.discard(connection)
    return collected


class _Collected:
    """A sink that keeps the whole reply, up to a limit."""

    takes_chunks = False
    source: ReplySource | None = None
    write_through = None
    last_block = b""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []
        self.sent_bytes = 0
        self.status = 0

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        del reason, fields, content_length
        self.status = status

    def flush(self) -> None:
        """Nothing waits."""

    def write(self, payload: bytes) -> None:
        self.sent_bytes += len(payload)
        if self.sent_bytes > self._limit_bytes:
            raise InvalidReply("The backend's state is too long to be read.")
        self._pieces.append(payload)

    def write_chunks(self, block: bytes) -> None:
        raise NotImplementedError

    def write_last_chunks(self, block: bytes) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Nothing more to do."""
