"""The whole proxy in the test process, on a free port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.server import make_host
from support.fleet_files import configuration_of
from support.running_proxy import RunningProxy

__all__ = ["Proxy", "live_proxy"]

_DEADLINE_SECONDS = 20
_NEVER_SECONDS = 3600.0  # a poll interval longer than any test: only the first round polls


@dataclass(frozen=True)
class Proxy(RunningProxy):
    """A proxy in this process.

    Attributes:
        http: an HTTP client for it.
        stop: stops it as SIGTERM does, and waits until it has ended.
        clients: connections that end with it.
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
async def live_proxy(
    *backends: str, refresh_seconds: float = _NEVER_SECONDS, fleet_file: str = "{}", **settings: Any
) -> AsyncIterator[Proxy]:
    """A proxy that has polled ``backends`` once, and polls again after ``refresh_seconds``.

    Args:
        fleet_file: its text; ``backends`` determine the backends.
    """
    loop = asyncio.get_running_loop()
    started: asyncio.Future[str] = loop.create_future()
    checked = Settings(backends=backends, metrics_cache_ttl_seconds=refresh_seconds, **settings)
    host = make_host(configuration_of(fleet_file, checked), started.set_result)
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
