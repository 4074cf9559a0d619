"""Which requests NGINX sends to another replica of the proxy when one fails."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from nginx.conftest import StartNginx
from support.fakes.engine import EngineConnection, FakeEngine, Script, answering, http_reply
from support.ports import free_port, unused_url

CHAT, RESPONSES, MODELS = "/v1/chat/completions", "/v1/responses", "/v1/models"
ONCE, AGAIN = 1, 4
"""Attempts with two replicas, each of which is its own backup."""


async def closing(connection: EngineConnection) -> None:
    """Closes the connection after each request, like a replica that is killed."""
    await connection.request()
    connection.finish()


async def cutting(connection: EngineConnection) -> None:
    """Begins a reply, and closes the connection within it."""
    await connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100\r\n\r\ndata: 1\n\n")
    connection.finish()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(http_reply(b"ok"))
    writer.close()


refusing = answering(http_reply(b"no", 503, b"retry-after: 7\r\n"))


@pytest.mark.parametrize(
    ("script", "method", "path", "attempts", "status"),
    [
        (closing, "POST", CHAT, AGAIN, 502),
        (closing, "POST", RESPONSES, ONCE, 502),
        (closing, "PATCH", "/x", ONCE, 502),
        (closing, "GET", MODELS, AGAIN, 502),
        (cutting, "POST", CHAT, ONCE, 200),
        (cutting, "GET", MODELS, ONCE, 200),
        (refusing, "POST", CHAT, ONCE, 503),
        (refusing, "GET", MODELS, ONCE, 503),
    ],
)
async def test_it_repeats_only_what_the_proxy_would_repeat_and_only_before_the_reply(
    start_nginx: StartNginx, script: Script, method: str, path: str, attempts: int, status: int
) -> None:
    async with FakeEngine(script) as one, FakeEngine(script) as other:
        nginx = start_nginx(one.url, other.url)
        async with nginx.call(path, None if method == "GET" else {}, method=method) as call:
            call.send()
            reply = await call.reply()

    assert (reply.status, len(one.requests) + len(other.requests)) == (status, attempts)
    assert attempts == ONCE or len(one.requests) == len(other.requests)  # each in turn


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_request_that_reached_no_replica_goes_to_another(start_nginx: StartNginx, path: str) -> None:
    async with FakeEngine(answering(http_reply(b"ok"))) as alive:
        nginx = start_nginx(unused_url(), unused_url(), unused_url(), alive.url)
        assert [(await nginx.send(path, {})).status for _ in range(8)] == [200] * 8


async def test_a_request_that_brings_down_replicas_reaches_four_at_most(start_nginx: StartNginx) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(FakeEngine(closing)) for _ in range(6)]
        nginx = start_nginx(*(replica.url for replica in replicas))
        assert (await nginx.send(CHAT, {})).status == 502
        assert sum(len(replica.requests) for replica in replicas) == 4


async def test_a_replica_that_is_back_is_used_at_once_if_it_is_the_only_one(start_nginx: StartNginx) -> None:
    port = free_port()
    nginx = start_nginx(f"http://127.0.0.1:{port}", unused_url())
    assert (await nginx.send(CHAT, {})).status == 502  # both are out for 3 s now
    async with await asyncio.start_server(answer, "127.0.0.1", port):
        assert (await nginx.send(CHAT, {})).status == 200


async def test_a_replica_that_hangs_gets_hardly_any_new_requests(start_nginx: StartNginx) -> None:
    async def frozen(connection: EngineConnection) -> None:
        await connection.request()
        await connection.cue.wait()

    async with (
        FakeEngine(frozen) as hanging,
        FakeEngine(answering(http_reply(b"ok"))) as alive,
        AsyncExitStack() as stack,
    ):
        nginx = start_nginx(hanging.url, alive.url)
        while len(hanging.requests) < 2:  # a single one would let the replica look as busy as one that has just replied
            call = await stack.enter_async_context(nginx.call(MODELS))
            call.send()
            await asyncio.sleep(0.05)
        for _ in range(20):
            assert (await nginx.send(MODELS)).status == 200
        assert len(hanging.requests) == 2
