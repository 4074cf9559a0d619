"""The engines behind a proxy, each a separate process that can be killed, frozen and given orders."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from proxies.proxy import free_ports

__all__ = ["Fleet", "fleet"]

_PROGRAM = Path(__file__).with_name("engine.py")
_LONGEST_LINE = 2**24  # bytes; a state contains the arrival time of every request


class Fleet:
    """Engines by number; each keeps its port across restarts."""

    def __init__(self, size: int) -> None:
        self.ports = free_ports(size)
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, number: int) -> None:
        """Start an engine, and wait until it listens."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(_PROGRAM),
            str(self.ports[number]),
            str(number),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,  # a shell that exits would resume stopped processes of its session
        )
        self._processes[number] = process
        await self._reply(process)

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._processes[number].kill()

    def freeze(self, number: int) -> None:
        self._processes[number].send_signal(signal.SIGSTOP)

    async def order(self, number: int, **orders: float) -> None:
        await self._tell(number, orders)

    async def state(self, number: int) -> dict[str, Any]:
        """``arrivals``: times of all requests since its start; ``plain`` and ``streams``: running requests."""
        return await self._tell(number, {})

    async def stop(self) -> None:
        for number in self._processes:
            self.kill(number)
        for process in self._processes.values():
            await process.wait()

    async def _tell(self, number: int, orders: dict[str, float]) -> dict[str, Any]:
        process = self._processes[number]
        cast(asyncio.StreamWriter, process.stdin).write(json.dumps(orders).encode() + b"\n")
        return await self._reply(process)

    async def _reply(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        line = await cast(asyncio.StreamReader, process.stdout).readline()
        if not line:
            raise RuntimeError("an engine ended by itself")
        state: dict[str, Any] = json.loads(line)
        return state


@contextlib.asynccontextmanager
async def fleet(size: int) -> AsyncIterator[Fleet]:
    """A fleet of listening engines."""
    engines = Fleet(size)
    try:
        for number in range(size):
            await engines.start(number)
        yield engines
    finally:
        await engines.stop()
