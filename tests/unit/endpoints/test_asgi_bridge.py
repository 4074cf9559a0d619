from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
from fastapi import FastAPI, Request

from inference_engine_proxy_server.endpoints.asgi_bridge import AsgiBridge
from inference_engine_proxy_server.wire.outcome import Outcome
from support.fakes.front import Front, until

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def get(path: str, method: str = "GET", version: str = "1.1", fields: str = "", body: str = "") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: a:1\r\n{fields}\r\n{body}".encode()


async def test_application_receives_the_request() -> None:
    scopes: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        message = await receive()
        assert message == {"type": "http.request", "body": b"hello", "more_body": False}
        await send(START)
        await send({"type": "http.response.body"})

    async with Front(AsgiBridge(app).answer) as front:
        client = await front.connect()
        await client.ask(get("/a%2Fb%20c?x=%201", "POST", fields="X-A:  1 \r\nContent-Length: 5\r\n", body="hello"))
        (scope,) = scopes
        assert (scope["type"], scope["method"], scope["http_version"]) == ("http", "POST", "1.1")
        assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a/b c", b"/a%2Fb%20c", b"x=%201")
        assert scope["headers"][:2] == [(b"host", b"a:1"), (b"x-a", b"1")]


async def test_head_is_passed_as_get_and_answered_without_a_body() -> None:
    app = FastAPI()

    @app.get("/")
    async def root(request: Request) -> dict[str, str]:
        return {"method": request.method}

    async with Front(AsgiBridge(app).answer) as front:
        client = await front.connect()
        reply = await client.ask(get("/", "HEAD"), has_body=False)
        assert (reply.status, reply.fields["content-length"]) == (200, "16")
        assert json.loads((await client.ask(get("/"))).body) == {"method": "GET"}
        assert (await client.ask(get("/", version="1.0"))).version == "HTTP/1.1"


async def test_streamed_reply_goes_out_in_pieces_with_own_framing() -> None:
    release = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        headers = [(b"Connection", b"upgrade"), (b"Transfer-Encoding", b"x"), (b"X-A", b"1")]
        await send({**START, "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await release.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "unknown"})
        await send({"type": "http.response.body", "body": b"two"})

    async with Front(AsgiBridge(app).answer) as front:
        client = await front.connect()
        client.send(get("/"))
        status, _, fields = await client.head()
        assert status == 201
        assert fields.pop("date").endswith("GMT")
        assert fields == {"x-a": "1", "transfer-encoding": "chunked", "x-request-id": "new-1"}
        assert await client.read(8) == b"3\r\none\r\n"
        release.set()
        assert await client.read(13) == b"3\r\ntwo\r\n0\r\n\r\n"


async def test_failure_of_the_application_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async with Front(AsgiBridge(app).answer) as front:
        client = await front.connect()
        assert (await client.ask(get("/"))).status == 500
        assert "ZeroDivisionError" in caplog.text


async def test_client_that_leaves_ends_the_call() -> None:
    waiting = asyncio.Event()
    ended: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        waiting.set()
        try:
            await receive()
        finally:
            ended.append("ended")

    async with Front(AsgiBridge(app).answer) as front:
        client = await front.connect()
        client.send(get("/"))
        await waiting.wait()
        client.leave()
        await until(lambda: ended)
        assert [exchange.outcome for exchange in front.observed] == [Outcome.CLIENT_LEFT]


async def test_application_waits_for_a_client_that_reads_too_slowly() -> None:
    sent = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(START)
        while True:
            await send({"type": "http.response.body", "body": b"x" * 16_384, "more_body": True})
            sent += 1
            await asyncio.sleep(0)

    async with Front(AsgiBridge(app).answer, send_buffer_bytes=4096) as front:
        client = await front.connect()
        client.send(get("/"))
        await client.head()
        stalled = -1
        while stalled != sent:
            stalled = sent
            await asyncio.sleep(0.2)
        assert sent * 16_384 < 10_000_000  # at most what fits into the buffers of both kernels

        await client.read(sent * 16_384)

        await until(lambda: sent > stalled)
        client.leave()
