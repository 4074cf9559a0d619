"""The engines behind the proxy, each a process on a fixed port, and their fleet file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from support.llama_server import LlamaServer
from support.ports import free_port
from support.tiny_gguf import write_tiny_gguf

__all__ = ["EngineProcess", "LlamaProcess", "ScriptedProcess", "started_engines", "write_fleet_file"]

_PROGRAM = Path(__file__).with_name("engine.py")
_SCRIPTED_CAPACITY = 3


class EngineProcess(Protocol):
    """Operations on any engine."""

    name: str
    port: int

    @property
    def url(self) -> str:
        """Its base URL."""

    async def start(self) -> None:
        """Start it; returns when it is ready."""

    def kill(self) -> None:
        """Kill it, like a crash."""

    def freeze(self) -> None:
        """Freeze it."""

    def thaw(self) -> None:
        """Thaw it."""

    @property
    def log(self) -> str:
        """Its output since its start."""


class LlamaProcess:
    """A real llama.cpp server."""

    def __init__(self, name: str, port: int, model: Path) -> None:
        self.name = name
        self.port = port
        self._model = model
        self._server: LlamaServer | None = None

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it; returns when it has loaded its model."""
        self._server = LlamaServer(
            self._model, "--alias", "tiny", "--http-threads", "16", "--context", "8192", port=self.port, wait=False
        )
        await asyncio.to_thread(self._server.wait_until_ready)

    def kill(self) -> None:
        """Kill it, like a crash; the system resets its connections."""
        if self._server is not None:
            server, self._server = self._server, None
            server.kill()

    def freeze(self) -> None:
        """Freeze it."""
        cast(LlamaServer, self._server).freeze()

    def thaw(self) -> None:
        """Thaw it."""
        cast(LlamaServer, self._server).thaw()

    @property
    def log(self) -> str:
        """Its output since its start."""
        return "" if self._server is None else self._server.log


class ScriptedProcess:
    """A scripted engine, see ``engine.py``."""

    def __init__(self, name: str, port: int, kind: str) -> None:
        self.name = name
        self.port = port
        self._kind = kind
        self._process: asyncio.subprocess.Process | None = None
        self._order_lock = asyncio.Lock()  # for one order with its answer

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it; returns when it listens."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(_PROGRAM),
            str(self.port),
            self._kind,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only the parent, which stops it
        )
        await self._state(self._process)

    async def order(self, **orders: object) -> dict[str, Any]:
        """Change its behaviour; returns its state."""
        process = cast(asyncio.subprocess.Process, self._process)
        async with self._order_lock:
            cast(asyncio.StreamWriter, process.stdin).write(json.dumps(orders).encode() + b"\n")
            return await self._state(process)

    def kill(self) -> None:
        """Kill it, like a crash; the system resets its connections."""
        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def freeze(self) -> None:
        """Freeze it."""
        cast(asyncio.subprocess.Process, self._process).send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Thaw it."""
        cast(asyncio.subprocess.Process, self._process).send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """Nothing, because it only follows its orders."""
        return ""

    async def _state(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        line = await cast(asyncio.StreamReader, process.stdout).readline()
        if not line:
            raise RuntimeError(f"the engine {self.name} has ended by itself")
        state: dict[str, Any] = json.loads(line)
        return state


@asynccontextmanager
async def started_engines(folder: Path) -> AsyncIterator[list[EngineProcess]]:
    """Two real engines and four scripted ones; the last scripted one is not in the fleet at first."""
    model = write_tiny_gguf(folder / "tiny.gguf")
    ports = [free_port() for _ in range(6)]
    engines: list[EngineProcess] = [
        LlamaProcess("llama-1", ports[0], model),
        LlamaProcess("llama-2", ports[1], model),
        ScriptedProcess("vllm-1", ports[2], "vllm"),
        ScriptedProcess("vllm-2", ports[3], "vllm"),
        ScriptedProcess("other-1", ports[4], "soak"),
        ScriptedProcess("spare-1", ports[5], "vllm"),
    ]
    try:
        async with asyncio.TaskGroup() as starts:
            for engine in engines:
                starts.create_task(engine.start())
        yield engines
    finally:
        for engine in engines:
            engine.kill()


def write_fleet_file(path: Path, engines: Iterable[EngineProcess]) -> None:
    """Written in one step, so that no reader sees half a file. JSON is also YAML."""
    backends = []
    for engine in engines:
        entry: dict[str, object] = {"url": engine.url, "name": engine.name}
        if isinstance(engine, ScriptedProcess):
            entry["capacity"] = _SCRIPTED_CAPACITY
        backends.append(entry)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"backends": backends}))
    os.replace(draft, path)  # noqa: PTH105 - the name says best that it is atomic
