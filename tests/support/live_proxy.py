"""The whole proxy in this process, on a free port, in front of engines that say what a test tells them to."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx2

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.server import make_host
from support.running_proxy import RunningProxy

__all__ = ["Fleet", "Proxy", "ScriptedEngine", "eventually", "live_proxy"]

_DEADLINE_SECONDS = 20
_NEVER_SECONDS = 3600.0  # a refresh interval that no test lives to see: only the first round asks

_LLAMACPP_METRICS = """\
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 190
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing {processing}
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred {waiting}
"""
_VLLM_METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {processing}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
"""


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class ScriptedEngine:
    """A server that answers as llama.cpp or vLLM would, with what its attributes say at that moment.

    Attributes:
        owner: ``owned_by`` of its models, which decides which engine it is.
        models: entries of its models list; ``owned_by`` is added.
        health: status of ``GET /health``.
        asked: method, target and body of every request, in order.
        freed: a request for any other path is answered once this is set.
        held: set when such a request has come.
        begins: half of the reply is sent while such a request is held.
    """

    owner: str = "llamacpp"
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "tiny", "object": "model"}])
    processing: int = 0
    waiting: int = 0
    health: int = 200
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    freed: asyncio.Event = field(default_factory=_set_event)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    begins: bool = False
    url: str = ""

    async def __aenter__(self) -> Self:
        self._clients: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Be gone: connections are refused from now on."""
        self._server.close()
        self.freed.set()
        for _ in range(20):  # a connection that was just being accepted takes some turns of the loop to be there
            await asyncio.sleep(0)
            self.drop_clients()
        await self._server.wait_closed()

    def drop_clients(self) -> None:
        """Break all connections."""
        for writer in self._clients:
            writer.transport.abort()

    def count(self, path: str) -> int:
        """How often ``path`` was asked for."""
        return sum(target.partition("?")[0] == path for _, target, _ in self.asked)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        with closing(writer):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                method, target, _ = head.split(" ", 2)
                self.asked.append((method, target, body))
                status, reply, is_own = self._reply(method, target.partition("?")[0])
                message = (
                    b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                    b"connection: close\r\n\r\n%b" % (status, len(reply), reply)
                )
                begun = 0 if is_own or not self.begins else len(message) - 1
                writer.write(message[:begun])
                if not is_own:
                    self.held.set()
                    await self.freed.wait()
                writer.write(message[begun:])
                await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # who asked has left
        self._clients.remove(writer)

    def _reply(self, method: str, path: str) -> tuple[int, bytes, bool]:
        """Status and body, and whether it is about the engine itself."""
        if method == "GET" and path == "/health":
            return self.health, b'{"status":"ok"}', True
        if method == "GET" and path == "/metrics":
            page = _VLLM_METRICS if self.owner == "vllm" else _LLAMACPP_METRICS
            return 200, page.format(processing=self.processing, waiting=self.waiting).encode(), True
        if method == "GET" and path == "/v1/models":
            entries = [entry | {"owned_by": self.owner} for entry in self.models]
            return 200, json.dumps({"object": "list", "data": entries}).encode(), True
        if method == "GET" and path in ("/is_paused", "/props"):
            return 404, b"{}", True
        return 200, json.dumps({"engine": self.url, "path": path}).encode(), False


@dataclass(frozen=True)
class Proxy(RunningProxy):
    """A proxy in this process.

    Attributes:
        http: a client of it.
        stop: ends it as SIGTERM does, and waits until it is gone.
        clients: what ends with it.
    """

    url: str
    http: httpx2.AsyncClient
    stop: Callable[[], Any]
    clients: AsyncExitStack

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection to it, closed with it at the latest."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.clients.callback(writer.close)
        return reader, writer


@asynccontextmanager
async def live_proxy(*backends: str, refresh_seconds: float = _NEVER_SECONDS, **settings: Any) -> AsyncIterator[Proxy]:
    """A proxy that has asked ``backends`` for their state once, and asks again after ``refresh_seconds``."""
    loop = asyncio.get_running_loop()
    started: asyncio.Future[str] = loop.create_future()
    checked = Settings(backends=backends, metrics_cache_ttl_seconds=refresh_seconds, **settings)
    host = make_host(Configuration.of(checked), started.set_result)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = loop.create_task(host.serve(sockets=[listener]))

        async def stop() -> None:
            host.should_exit = True
            async with asyncio.timeout(_DEADLINE_SECONDS):
                await serving

        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                url = await started
            async with AsyncExitStack() as clients:
                http = httpx2.AsyncClient(base_url=url, timeout=_DEADLINE_SECONDS, trust_env=False)
                await clients.enter_async_context(http)
                yield Proxy(url, http, stop, clients)
        finally:
            await stop()


@dataclass(frozen=True)
class Fleet:
    """Starts engines and proxies for one test; all of them end with it."""

    stack: AsyncExitStack

    async def engine(self, **script: Any) -> ScriptedEngine:
        """An engine; ``script`` sets its attributes."""
        return await self.stack.enter_async_context(ScriptedEngine(**script))

    async def proxy(self, *backends: ScriptedEngine | str, **settings: Any) -> Proxy:
        """A proxy in front of ``backends``, as :func:`live_proxy`."""
        urls = (backend if isinstance(backend, str) else backend.url for backend in backends)
        return await self.stack.enter_async_context(live_proxy(*urls, **settings))


async def eventually(condition: Callable[[], Any]) -> Any:
    """The first true answer of ``condition``, or of what it returns to await; fails after a long while."""
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.005)
