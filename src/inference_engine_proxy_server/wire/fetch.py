"""Small requests of the proxy itself to a backend, such as polls. Their replies are collected whole."""

from __future__ import annotations

import asyncio

from inference_engine_proxy_server.errors import BackendBroke
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.backend_connections import BackendConnections
from inference_engine_proxy_server.wire.collected_reply import CollectedReply

__all__ = ["Inquiry"]


class Inquiry:
    """A group of requests of the proxy itself, such as one poll. They use the same connection, one after another.

    Each inquiry opens a new connection, because only this shows whether the backend still accepts connections.

    Args:
        connections: to the backend.
        limit_bytes: the longest reply.
    """

    def __init__(self, connections: BackendConnections, limit_bytes: int) -> None:
        self._connections = connections
        self._limit_bytes = limit_bytes
        self._free: list[BackendConnection] = []

    async def fetch(
        self, path: str, *, json_body: bytes | None = None, credentials: bytes = b"", timeout_seconds: float
    ) -> CollectedReply:
        """Request ``path``.

        Args:
            json_body: body of a ``POST``; ``None`` for a ``GET``.
            credentials: header lines that authenticate the proxy.

        Returns:
            The reply's ``status`` and ``body``.

        Raises:
            TimeoutError: not complete in time.
            BackendError: no connection, or it broke, or the reply is not valid HTTP or longer than the limit.
        """
        origin = self._connections.origin
        line, fields, body = b"GET", b"", b""
        if json_body is not None:
            line, body = b"POST", json_body
            fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        section = b"%b %b%b HTTP/1.1\r\nhost: %b\r\nuser-agent: inference-proxy\r\naccept: */*\r\n%b%b\r\n" % (
            line, origin.prefix, path.encode(), origin.authority, credentials, fields,
        )  # fmt: skip
        ends_at = asyncio.get_running_loop().time() + timeout_seconds
        while self._free:
            try:
                return await self._ask(self._free.pop(), [section, body], ends_at)
            except BackendBroke as error:
                if not error.crossed_request:
                    raise
        # Not below a timeout of its own, which would hide why there is no connection.
        connection = await self._connections.connect(within_seconds=timeout_seconds)
        return await self._ask(connection, [section, body], ends_at)

    async def reach(self, timeout_seconds: float) -> None:
        """Open a connection, and send nothing.

        Raises:
            BackendError: no connection in time.
        """
        self._connections.discard(await self._connections.connect(within_seconds=timeout_seconds))

    def close(self) -> None:
        """End the inquiry, and close its connection."""
        while self._free:
            self._connections.discard(self._free.pop())

    async def _ask(self, connection: BackendConnection, blocks: list[bytes], ends_at: float) -> CollectedReply:
        collected = CollectedReply(self._limit_bytes)
        try:
            async with asyncio.timeout_at(ends_at):
                await connection.request(blocks, collected, is_head=False)
        except BaseException:
            self._connections.discard(connection)
            raise
        if connection.is_reusable:
            self._free.append(connection)
        else:
            self._connections.discard(connection)
        return collected
