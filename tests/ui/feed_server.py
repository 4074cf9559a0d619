"""A server of the dashboard's page with a scripted feed, on a real socket. Started as a program, it shows a fleet.

``python feed_server.py SIZE [PORT]`` serves SIZE backends, some of them with problems; ADMIN_KEY is ``operator``.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse

from inference_engine_proxy_server.endpoints.docs import docs_router
from inference_engine_proxy_server.endpoints.page import page_router
from ui.scripted_fleet import ScriptedFleet

__all__ = ["ADMIN_KEY", "PROBLEMS", "FeedServer", "served", "some_problems"]

ADMIN_KEY = "operator"
PROBLEMS = {8: "draining", 17: "down", 23: "frozen", 31: "suspect", 36: "starting"}
_SETTINGS = (
    ("PORT", "8888", "8888", "default", "Port that clients reach."),
    ("BALANCING_POLICY", "expected_time", "least_requests", "environment", "How a backend is chosen."),
    ("ADMIN_KEY", "********", None, "environment", "Key of operators."),
    ("METRICS_CACHE_TTL_SECONDS", 3, 3, "default", "Seconds between two polls of a backend."),
)
_NO_HEALTH = {"available_backends": [], "total_backends": 0, "queue": {"requests": 0, "limit": 0}, "details": []}

_NEVER_NULL = {
    *("id", "name", "at", "started_at", "end", "step", "version", "policy", "audience", "admin_key", "shown_state"),
    *("kind", "severity", "text", "phase", "path", "count", "models"),
}

_Authorization = Annotated[str, Header()]


def some_problems(size: int) -> dict[int, str]:
    """States of the backends with problems in a fleet of this size."""
    return {number: state for number, state in PROBLEMS.items() if number <= size}


class FeedServer:
    """The application.

    Attributes:
        fleet: the fleet that is shown.
        viewers: how many feeds are open now.
        opened: how many feeds were opened.
        refusals: how many of the next feeds are answered with 503.
        is_silent: whether feeds send nothing now.
        knows_nothing: whether everything is null that may be.
        commands: paths of the commands that were obeyed.
        chats: how many chats are being answered now.
        most_chats: how many were at a time.
        breaks_chats: whether answers break off.
        tick_seconds: time between two snapshots.
    """

    def __init__(self, fleet: ScriptedFleet, tick_seconds: float = 1.0) -> None:
        self.fleet = fleet
        self.viewers = 0
        self.opened = 0
        self.refusals = 0
        self.is_silent = False
        self.knows_nothing = False
        self.commands: list[str] = []
        self.chats = 0
        self.most_chats = 0
        self.breaks_chats = False
        self.tick_seconds = tick_seconds
        self._began = time.monotonic()
        self.app = FastAPI()
        self.app.include_router(page_router(lambda _: _NO_HEALTH))
        self.app.include_router(docs_router())  # the icon
        self.app.middleware("http")(_without_keys)
        self._add_feed()
        self._add_admin()
        self._add_chat()

    @property
    def tick(self) -> int:
        """Seconds since the start."""
        return 1000 + int((time.monotonic() - self._began) / self.tick_seconds)

    def _is_operator(self, authorization: str) -> bool:
        return self.fleet.admin_key is not None and authorization == f"Bearer {self.fleet.admin_key}"

    def _require_operator(self, authorization: str) -> None:
        if self.fleet.admin_key is None:
            raise HTTPException(404)
        if not self._is_operator(authorization):
            raise HTTPException(401)

    def _add_feed(self) -> None:
        @self.app.get("/dashboard/feed")
        async def feed(authorization: _Authorization = "") -> StreamingResponse:
            if self.refusals:
                self.refusals -= 1
                raise HTTPException(503)
            events = self._events(is_operator=self._is_operator(authorization))
            return StreamingResponse(events, media_type="text/event-stream")

    async def _events(self, *, is_operator: bool) -> AsyncIterator[bytes]:
        self.viewers += 1
        self.opened += 1
        try:
            is_first = True
            while True:
                if not self.is_silent:
                    snapshot: Any = self.fleet.snapshot(self.tick, is_operator=is_operator, is_first=is_first)
                    if self.knows_nothing:
                        snapshot = _unknown(snapshot)
                    yield f"event: snapshot\nid: {self.tick}\ndata: {json.dumps(snapshot)}\n\n".encode()
                    is_first = False
                await asyncio.sleep(self.tick_seconds)
        finally:
            self.viewers -= 1

    def _add_admin(self) -> None:
        @self.app.post("/admin/backends/{name}/{command}")
        async def command(
            request: Request, name: str, command: str, authorization: _Authorization = ""
        ) -> dict[str, Any]:
            self._require_operator(authorization)
            self.commands.append(f"{request.url.path}?{request.url.query}".removesuffix("?"))
            if not self.fleet.obey(name, drains=command == "drain"):
                raise HTTPException(404)
            return {}

        @self.app.post("/admin/requests/{name}/cancel")
        async def cancel(name: str, authorization: _Authorization = "") -> dict[str, Any]:
            self._require_operator(authorization)
            self.fleet.cancelled.add(name)
            return {}

        @self.app.get("/admin/decisions")
        async def decisions(authorization: _Authorization = "") -> dict[str, Any]:
            self._require_operator(authorization)
            return {"decisions": self.fleet.decisions(self.tick)}

        @self.app.get("/admin/settings")
        async def settings(authorization: _Authorization = "") -> dict[str, Any]:
            self._require_operator(authorization)
            names = ("name", "value", "default", "source", "description")
            return {"settings": [dict(zip(names, one, strict=True)) for one in _SETTINGS]}

    def _add_chat(self) -> None:
        @self.app.post("/v1/chat/completions")
        async def chat() -> StreamingResponse:
            backend = self.fleet.name(1 + self.tick % self.fleet.size)
            fields = {"x-backend": backend, "x-request-id": "8a88-99"}
            return StreamingResponse(self._answer(), media_type="text/event-stream", headers=fields)

    async def _answer(self) -> AsyncIterator[bytes]:
        self.chats += 1
        self.most_chats = max(self.chats, self.most_chats)
        try:
            for word in range(20 if self.breaks_chats else 40):
                chunk = {"choices": [{"delta": {"content": f"word {word} "}}]}
                yield f"data: {json.dumps(chunk)}\n\n".encode()
                await asyncio.sleep(0.03)
            if not self.breaks_chats:
                yield b"data: [DONE]\n\n"
        finally:
            self.chats -= 1


def _unknown(value: Any, name: str = "") -> Any:
    """The same without what may be null."""
    if isinstance(value, dict):
        return {key: _unknown(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_unknown(one, name) for one in value]
    return value if name in _NEVER_NULL or isinstance(value, bool) else None


async def _without_keys(request: Request, call_next: Any) -> Any:
    request.state.access = None
    return await call_next(request)


@asynccontextmanager
async def served(app: FastAPI, port: int = 0) -> AsyncIterator[str]:
    """Serve an application until the end of the context; gives its base URL."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
        host = uvicorn.Server(config)
        serving = asyncio.get_running_loop().create_task(host.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            host.should_exit = True
            await serving


async def _show(size: int, port: int) -> None:
    async with served(FeedServer(ScriptedFleet(size, some_problems(size), ADMIN_KEY)).app, port) as url:
        print(url, flush=True)  # noqa: T201 - a program
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(_show(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8123))
