"""The whole program before engines that fail, and a look afterwards whether anything was left behind."""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from faults.engine import Answer, Engine, says
from support.fakes.engine import http_reply
from support.live_proxy import Proxy, live_proxy
from support.llama_server import LlamaServer
from support.tiny_gguf import write_tiny_gguf
from support.waiting import eventually

__all__ = ["CHAT", "OTHER", "Fleet"]

CHAT = "/v1/chat/completions"
OTHER = "/v1/responses"
"""A path whose requests may have effects, so that none of them may be sent twice."""

E = TypeVar("E", bound=Engine)

_WELL = says(http_reply())


@dataclass
class Fleet:
    """Starts engines and the proxy before them for one test."""

    stack: AsyncExitStack
    engines: list[Engine] = field(default_factory=list)
    access_log: io.StringIO = field(default_factory=io.StringIO)
    watched: Proxy | None = None

    async def engine(self, answer: Answer = _WELL, **script: Any) -> Engine:
        """An engine that answers clients' requests by ``answer``; ``script`` as for :class:`Engine`."""
        return await self.add(Engine(answer, **script))

    async def add(self, engine: E) -> E:
        """Let ``engine`` be one of them."""
        self.engines.append(engine)
        await self.stack.enter_async_context(engine)
        return engine

    async def proxy(self, *backends: Engine | LlamaServer | str, **settings: Any) -> Proxy:
        """The proxy, as :func:`live_proxy`; what comes back need not start slowly."""
        urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
        settings = {"slow_start_seconds": 0} | settings
        with contextlib.redirect_stdout(self.access_log):  # as long as it starts: it keeps what it finds then
            self.watched = await self.stack.enter_async_context(live_proxy(*urls, **settings))
        return self.watched

    async def nothing_is_left(self) -> None:
        """Every gauge is at 0, every request has one line in the access log, and engines see all connections end."""
        if self.watched is None:
            return
        await eventually(self.watched.is_at_rest, seconds=5)
        requests = await self.watched.metric("requests_total")
        await self.watched.stop()
        assert self.access_log.getvalue().count("\n") == requests + 1  # the look at the metrics itself
        await eventually(lambda: not sum(engine.open_requests for engine in self.engines), seconds=5)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    files = _open_files()
    async with AsyncExitStack() as stack:
        one = Fleet(stack)
        yield one
        await one.nothing_is_left()
    await eventually(lambda: _open_files() <= files, seconds=5)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def two_servers(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(LlamaServer(tiny_model)) for _ in range(2)]
