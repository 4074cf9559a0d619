"""Answers requests for the proxy's own paths through an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.reply_fields import date_field

__all__ = ["AsgiBridge"]

_Message = MutableMapping[str, Any]
_App = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]],
    Awaitable[None],
]
_FRAMING = frozenset({b"connection", b"content-length", b"transfer-encoding"})


class AsgiBridge:
    """Answers exchanges through an ASGI 3 application.

    ``HEAD`` is passed as ``GET``, and the body of the answer is dropped, so an application need not support both. A
    slash at the end of the path is dropped from ``path``, but not from ``raw_path``. The call is cancelled when the
    client disconnects, so the application never receives ``http.disconnect``. While the client reads too slowly, the
    application waits in ``send``.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def answer(self, exchange: Exchange) -> None:
        """Answer ``exchange``."""
        bodies = [exchange.body]
        source = _Source()

        async def receive() -> _Message:
            if not bodies:
                await asyncio.get_running_loop().create_future()  # until the client disconnects
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}

        async def send(message: _Message) -> None:
            if message["type"] == "http.response.start":
                _begin(exchange, message)
            elif message["type"] == "http.response.body":
                is_last = not message.get("more_body")
                if not is_last:
                    exchange.source = source
                if message.get("body"):
                    exchange.write(message["body"])
                if is_last:
                    exchange.end()
                else:
                    await source.may_go_on.wait()

        async def call() -> None:
            await self._app(_scope(exchange), receive, send)

        await asyncio.get_running_loop().create_task(call())  # frameworks look up the current task


class _Source:
    """The application as the source of a reply that it sends in pieces."""

    is_unanswered = False

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    def comment_sent(self) -> None:
        """Never called, because the reply has begun."""

    def pause_reading(self) -> None:
        """The client is behind."""
        self.may_go_on.clear()

    def resume_reading(self) -> None:
        """The client has caught up."""
        self.may_go_on.set()


def _scope(exchange: Exchange) -> _Message:
    head = exchange.head
    raw_path, _, query = head.target.partition(b"?")
    fields = (line.split(b":", 1) for line in head.passed_on.split(b"\r\n") if line)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": f"1.{head.minor_version}",
        "method": "GET" if head.method == "HEAD" else head.method,
        "scheme": "http",
        "path": unquote(raw_path.decode()).removesuffix("/") or "/",
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", head.host), *((name.lower(), value.strip(b" \t")) for name, value in fields)],
        "client": None,
        "server": None,
        "state": {"access": head.access, "request_id": exchange.request_id, "is_head": head.is_head},
    }


def _begin(exchange: Exchange, message: _Message) -> None:
    status: int = message["status"]
    fields = [(name.lower(), value) for name, value in message["headers"]]
    length = next((int(value) for name, value in fields if name == b"content-length"), None)
    lines = b"".join(b"%b: %b\r\n" % field for field in fields if field[0] not in _FRAMING)
    exchange.begin(status, f" {HTTPStatus(status).phrase}".encode(), date_field() + lines, length)
