"""The program in a process of its own, before engines in this one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from faults.conftest import Watched
from support.fakes.engine import FakeEngine
from support.live_proxy import Proxy as LiveProxy
from support.live_proxy import ScriptedEngine
from support.program import FreshProxy, Proxy

__all__ = ["Program", "fresh_program", "program", "started"]


@dataclass(frozen=True)
class Program(Watched):
    """A proxy as clients and operators see it, and its process."""

    process: Proxy


Backend = FakeEngine | ScriptedEngine | str


async def started(stack: AsyncExitStack, folder: Path, *backends: Backend, **settings: str) -> Program:
    """The program, which listens; it lives until a test or ``stack`` ends it."""
    return await _started(Proxy, stack, folder, backends, settings)


@asynccontextmanager
async def program(folder: Path, *backends: Backend, **settings: str) -> AsyncIterator[Program]:
    """The program, which must end well; as :class:`support.program.Proxy`."""
    async with AsyncExitStack() as stack:
        running = await started(stack, folder, *backends, **settings)
        yield running
        await asyncio.to_thread(running.process.stop)


@asynccontextmanager
async def fresh_program(folder: Path, *backends: Backend, **settings: str) -> AsyncIterator[Program]:
    """The same, as :class:`support.program.FreshProxy`."""
    async with AsyncExitStack() as stack:
        running = await _started(FreshProxy, stack, folder, backends, settings)
        yield running
        await asyncio.to_thread(running.process.stop)


async def _started(
    kind: type[Proxy], stack: AsyncExitStack, folder: Path, backends: Iterable[Backend], settings: dict[str, str]
) -> Program:
    urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
    process = await asyncio.to_thread(_start, kind, folder, urls, settings)
    stack.callback(_kill, process)
    http = await stack.enter_async_context(httpx2.AsyncClient(base_url=process.url, trust_env=False))
    return Program(LiveProxy(process.url, http, process.ended, stack), process)


def _start(kind: type[Proxy], folder: Path, urls: list[str], settings: dict[str, str]) -> Proxy:
    folder.mkdir(exist_ok=True)
    return kind(folder, urls, **settings)


def _kill(process: Proxy) -> None:
    """End it if it has not ended."""
    process.signal(signal.SIGKILL)
    with contextlib.suppress(AssertionError):  # that it must have ended well
        process.stop()
