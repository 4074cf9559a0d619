"""A proxy in front of an engine that records every byte.

Tests of a module share it, because refused messages leave no trace.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest_asyncio

from corpus.notation import settings
from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.fakes.front import Client
from support.live_proxy import Proxy, live_proxy

__all__ = ["MODELS", "YES", "Recorder", "RunningProxy", "answers_yes", "connect_to", "is_about_state"]

YES = b"yes"
"""The body of each good reply of the engine."""

_PATIENCE_SECONDS = 0.05  # client timeout of the impatient proxy
_HEAD_BYTES = 256 * 1024  # limit of the test's client
_IDLE_SECONDS = 60  # long enough that no backend connection ends because of its age
_STATE_PATHS = (b"GET /health ", b"GET /v1/models ")
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "corpus"}]}).encode()
"""The model list of an unknown engine, which the proxy treats as a plain OpenAI-compatible server."""

Answer = Callable[[EngineConnection, bytes], Coroutine[None, None, None]]


def is_about_state(request: bytes) -> bool:
    """Whether ``request`` is a poll of the proxy."""
    return request.startswith(_STATE_PATHS)


class Recorder(FakeEngine):
    """An engine that answers polls itself and leaves other requests to ``answer``."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(self._serve)
        self.answer = answer

    @property
    def passed_on(self) -> list[bytes]:
        """The requests of clients, each as raw bytes."""
        return [request for request in self.requests if not is_about_state(request)]

    @property
    def is_in_step(self) -> bool:
        """Whether every received byte belongs to a complete request."""
        return all(len(one.received) == sum(map(len, one.requests)) for one in self.connections)

    async def _serve(self, connection: EngineConnection) -> None:
        while True:
            request = await connection.request()
            if is_about_state(request):
                connection.send(http_reply(MODELS))
            else:
                await self.answer(connection, request)


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy with the engine behind it."""

    proxy: Proxy
    engine: Recorder

    async def connect(self) -> Client:
        """A new client connection."""
        return await connect_to(self.proxy)

    async def is_well(self, path: str) -> bool:
        """Whether a good request for ``path`` on a new connection gets the engine's good reply."""
        client = await self.connect()
        client.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\ngood".encode())
        status, _, fields = await client.head()
        body = await client.read(int(fields["content-length"]))
        client.leave()
        assert status != 200 or body == YES
        return status == 200


async def connect_to(proxy: Proxy) -> Client:
    """A new client connection, which the test may leave open."""
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=_HEAD_BYTES)
    proxy.clients.callback(writer.close)
    return Client(reader, writer)


async def answers_yes(connection: EngineConnection, request: bytes) -> None:
    """Answer any request with a good reply."""
    connection.send(http_reply(b"" if request.startswith(b"HEAD ") else YES))


async def _watched(**further: Any) -> AsyncIterator[RunningProxy]:
    async with Recorder(answers_yes) as engine:
        limits = settings() | {"access_log": False, "backend_idle_connection_seconds": _IDLE_SECONDS} | further
        async with live_proxy(engine.url, **limits) as proxy:
            yield RunningProxy(proxy, engine)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched() -> AsyncIterator[RunningProxy]:
    """A proxy with the limits of the corpus."""
    async for one in _watched():
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient() -> AsyncIterator[RunningProxy]:
    """The same, with short client timeouts."""
    async for one in _watched(
        client_header_timeout_seconds=_PATIENCE_SECONDS, client_body_timeout_seconds=_PATIENCE_SECONDS
    ):
        yield one
