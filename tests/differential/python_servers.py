"""Backends with the HTTP parsers of Python servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, closing
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from corpus.conftest import MODELS
from differential.observed import REFUSED, Backend, Observed

__all__ = ["aiohttp_backend", "h11_backend", "uvicorn_h11_backend", "uvicorn_httptools_backend"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_LENGTH = str(len(MODELS)).encode()
_FIELDS = [(b"content-type", b"application/json"), (b"content-length", _LENGTH)]


@asynccontextmanager
async def h11_backend() -> AsyncIterator[Backend]:
    """h11 behind a plain asyncio server."""
    observed: list[Observed] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            try:
                while await _serve_one(reader, writer, observed):
                    pass
            except h11.RemoteProtocolError:
                observed.append(REFUSED)
            except ConnectionError:
                pass  # the proxy has closed the connection

    connection = _OneByOne(serve)
    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield Backend("h11", _url_of(server.sockets[0]), lambda: observed)
    finally:
        server.close()
        connection.end()


class _OneByOne:
    """Serves connections, and breaks the remaining ones at the end."""

    def __init__(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._serve = serve
        self._writers: set[asyncio.StreamWriter] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._serve(reader, writer)
        finally:
            self._writers.discard(writer)

    def end(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def _serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, observed: list[Observed]) -> bool:
    """Read requests from a connection until it ends or h11 refuses to continue."""
    connection = h11.Connection(h11.SERVER)
    head: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            observed.append(Observed.of(head.method.decode(), head.target, body))
            writer.write(_h11_reply(connection, is_head=head.method == b"HEAD"))
            if connection.our_state is h11.MUST_CLOSE:
                return False
            connection.start_next_cycle()
        else:
            return False


def _h11_reply(connection: h11.Connection, *, is_head: bool) -> bytes:
    parts = [connection.send(h11.Response(status_code=200, headers=_FIELDS))]
    if not is_head:
        parts.append(connection.send(h11.Data(data=MODELS)))
    parts.append(connection.send(h11.EndOfMessage()))
    return b"".join(part for part in parts if part)


@asynccontextmanager
async def uvicorn_h11_backend() -> AsyncIterator[Backend]:
    """uvicorn with h11."""
    async with _uvicorn("uvicorn-h11", H11Protocol) as backend:
        yield backend


@asynccontextmanager
async def uvicorn_httptools_backend() -> AsyncIterator[Backend]:
    """uvicorn with httptools, which is llhttp, Node's parser."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    async with _uvicorn("uvicorn-httptools", HttpToolsProtocol) as backend:
        yield backend


@asynccontextmanager
async def _uvicorn(name: str, protocol: type[Any]) -> AsyncIterator[Backend]:
    observed: list[Observed] = []

    async def app(scope: _Message, receive: _Receive, send: _Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = b"?" + scope["query_string"] if scope["query_string"] or scope["raw_path"].endswith(b"?") else b""
        observed.append(Observed.of(scope["method"], scope["raw_path"] + query, body))
        await send({"type": "http.response.start", "status": 200, "headers": _FIELDS})
        await send({"type": "http.response.body", "body": MODELS})

    def refuse(connection: Any, message: str) -> None:
        observed.append(REFUSED)
        protocol.send_400_response(connection, message)

    noting: Any = type("Noting", (protocol,), {"send_400_response": refuse})
    config = uvicorn.Config(app, http=noting, ws="none", lifespan="off", log_config=None, proxy_headers=False)
    config.access_log = False
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
        try:
            yield Backend(name, _url_of(listener), lambda: observed)
        finally:
            server.should_exit = server.force_exit = True
            await serving


@asynccontextmanager
async def aiohttp_backend() -> AsyncIterator[Backend]:
    """aiohttp's server, with its parser in C if it has that."""
    from aiohttp import web

    observed: list[Observed] = []

    async def handle(request: Any) -> Any:
        observed.append(
            Observed.of(request.method, request.raw_path.encode("utf-8", "surrogateescape"), await request.read())
        )
        return web.Response(body=MODELS, content_type="application/json")

    runner = web.ServerRunner(web.Server(handle, access_log=None, auto_decompress=False), shutdown_timeout=0)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            await web.SockSite(runner, listener).start()
            yield Backend("aiohttp", _url_of(listener), lambda: observed)
        finally:
            await runner.cleanup()


def _url_of(listener: Any) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
