"""An engine that answers every request with a model list and records what reached it."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from support.fakes.engine import EngineConnection, FakeEngine, http_reply

__all__ = ["RecordingEngine", "raw"]

_MODELS = b'{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"unknown-engine"}]}'
_POLL_FIELD = b"\r\nuser-agent: inference-proxy\r\n"
_DEADLINE_SECONDS = 30.0


class RecordingEngine(FakeEngine):
    """Answers every request with one model's name."""

    def __init__(self) -> None:
        super().__init__(_answer_everything)

    @property
    def polls(self) -> list[bytes]:
        """Requests of the proxy itself."""
        return [request for request in self.requests if _POLL_FIELD in request]

    @property
    def forwarded(self) -> list[bytes]:
        """Requests of clients."""
        return [request for request in self.requests if _POLL_FIELD not in request]


async def _answer_everything(connection: EngineConnection) -> None:
    while True:
        await connection.request()
        connection.send(http_reply(_MODELS))


async def raw(url: str, request: bytes) -> bytes:
    """Send ``request``; returns everything received until the connection ends."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        async with asyncio.timeout(_DEADLINE_SECONDS):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
