"""The program in a process of its own, before engines in this one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from end_to_end.program import Proxy
from faults.conftest import Watched
from support.fakes.engine import FakeEngine
from support.live_proxy import Proxy as LiveProxy
from support.live_proxy import ScriptedEngine

__all__ = ["Program", "program", "started"]


@dataclass(frozen=True)
class Program(Watched):
    """A proxy as clients and operators see it, and its process."""

    process: Proxy


async def started(
    stack: AsyncExitStack, folder: Path, *backends: FakeEngine | ScriptedEngine | str, **settings: str
) -> Program:
    """The program, which listens; it lives until somebody ends it."""
    urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
    process = await asyncio.to_thread(_start, folder, urls, settings)
    stack.callback(_kill, process)
    http = await stack.enter_async_context(httpx2.AsyncClient(base_url=process.url, trust_env=False))
    return Program(LiveProxy(process.url, http, process.ended, stack), process)


@asynccontextmanager
async def program(
    folder: Path, *backends: FakeEngine | ScriptedEngine | str, **settings: str
) -> AsyncIterator[Program]:
    """The program, which must end well; as :class:`end_to_end.program.Proxy`."""
    async with AsyncExitStack() as stack:
        running = await started(stack, folder, *backends, **settings)
        yield running
        await asyncio.to_thread(running.process.stop)


def _start(folder: Path, urls: list[str], settings: dict[str, str]) -> Proxy:
    folder.mkdir(exist_ok=True)
    return Proxy(folder, urls, **settings)


def _kill(process: Proxy) -> None:
    """End it if it has not ended."""
    process.signal(signal.SIGKILL)
    with contextlib.suppress(AssertionError):  # that it must have ended well
        process.stop()
