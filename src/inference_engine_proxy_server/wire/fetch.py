"""One small GET to a backend, collected whole: how its state is asked for."""

from __future__ import annotations

import asyncio

from inference_engine_proxy_server.errors import InvalidReply
from inference_engine_proxy_server.wire.backend_connections import BackendConnections
from inference_engine_proxy_server.wire.exchange import ReplySource

__all__ = ["fetch"]


async def fetch(
    connections: BackendConnections, path: str, *, credentials: bytes = b"", timeout_seconds: float, limit_bytes: int
) -> _Collected:
    """Ask a backend for ``path`` on a connection of its own.

    Args:
        credentials: header lines that it knows us by.

    Returns:
        The reply's ``status`` and ``body``.

    Raises:
        TimeoutError: not complete in time.
        BackendError: no connection, or it broke, or the reply is not valid HTTP or longer than ``limit_bytes``.
    """
    collected = _Collected(limit_bytes)
    origin = connections.origin
    section = (
        b"GET %b%b HTTP/1.1\r\nhost: %b\r\nuser-agent: inference-proxy\r\naccept: */*\r\n%bconnection: close\r\n\r\n"
    )
    async with asyncio.timeout(timeout_seconds):
        connection = await connections.connect()
        try:
            await connection.request(
                [section % (origin.prefix, path.encode(), origin.authority, credentials)], collected, is_head=False
            )
        finally:
            connection.is_reusable = False  # its end was asked for, whether the backend says so or not
            connections.give_back(connection)
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
