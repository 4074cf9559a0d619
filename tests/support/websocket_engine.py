"""An engine whose WebSockets are those of the library ``websockets``, and the program that runs it in its own process.

::

    async with WebSocketEngine() as engine:             # sends every message back
    async with WebSocketEngine(talks) as engine:        # as the coroutine ``talks`` does
    with EngineProcess() as engine:                     # sends every message back, until it is killed
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from support.program import environment
from support.running_proxy import RunningProxy

__all__ = ["PATH", "EngineProcess", "Talk", "WebSocketEngine", "echoes", "websocket"]

PATH = "/v1/realtime?model=m"

Talk = Callable[[ServerConnection], Coroutine[None, None, None]]
"""Serves one open WebSocket; when it returns, the engine closes it."""

_POLLED = ("/v1/models", "/health", "/metrics", "/is_paused", "/props", "/version")


async def echoes(socket: ServerConnection) -> None:
    """Sends every message back."""
    async for message in socket:
        await socket.send(message)


def websocket(proxy: RunningProxy, path: str = PATH, **settings: Any) -> connect:
    """A WebSocket through ``proxy``, with settings of ``websockets.asyncio.client.connect``."""
    usual = {"max_size": None, "ping_interval": None, "open_timeout": 30, "proxy": None}
    return connect(proxy.url.replace("http", "ws", 1) + path, **(usual | settings))


class WebSocketEngine:
    """The engine.

    Args:
        talk: serves each WebSocket.
        model: the only model that it lists.
        refusal: status and body of its reply to handshakes; ``None`` if it accepts them.
        settings: of ``websockets.asyncio.server.serve``.

    Attributes:
        handshakes: the requests for WebSockets, in order.
        sockets: its side of every WebSocket that was opened, in order.
        url: its base URL.
    """

    def __init__(
        self,
        talk: Talk = echoes,
        *,
        model: str = "m",
        refusal: tuple[int, str] | None = None,
        tls: ssl.SSLContext | None = None,
        **settings: Any,
    ) -> None:
        self.talk = talk
        self.refusal = refusal
        self.handshakes: list[Request] = []
        self.sockets: list[ServerConnection] = []
        self.url = ""
        self._models = {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "vllm"}]}
        self._tls = tls
        self._settings = {"max_size": None, "ping_interval": None} | settings
        self._server: Server

    @property
    def closes(self) -> list[tuple[int | None, str | None]]:
        """Code and reason of each WebSocket that has ended, as the engine sees them."""
        return [(one.close_code, one.close_reason) for one in self.sockets if one.close_code is not None]

    async def stop(self) -> None:
        """Refuse new connections, and close open WebSockets with code 1001."""
        self._server.close()
        await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        scheme = "https" if self._tls else "http"
        self._server = await serve(
            self._serve, "127.0.0.1", 0, process_request=self._answer, ssl=self._tls, **self._settings
        )
        self.url = f"{scheme}://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        with contextlib.suppress(ConnectionClosed):
            await self.talk(socket)

    def _answer(self, socket: ServerConnection, request: Request) -> Response | None:
        if request.path in _POLLED:
            known = request.path in ("/v1/models", "/health")
            return socket.respond(HTTPStatus.OK if known else HTTPStatus.NOT_FOUND, json.dumps(self._models))
        self.handshakes.append(request)
        if self.refusal is None:
            return None
        status, body = self.refusal
        return socket.respond(HTTPStatus(status), body)


class EngineProcess:
    """The engine in a process of its own, which sends every message back.

    Attributes:
        url: its base URL.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "support.websocket_engine"]
        folders = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment(PYTHONPATH=folders)
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        self._process.kill()
        self._process.wait()


async def _main() -> None:
    async with WebSocketEngine() as engine:
        print(engine.url, flush=True)  # noqa: T201 - read by the process that started this one
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
