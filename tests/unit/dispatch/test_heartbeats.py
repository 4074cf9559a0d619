from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from inference_engine_proxy_server.dispatch.heartbeats import send_heartbeat
from inference_engine_proxy_server.errors import BackendBroke
from inference_engine_proxy_server.wire import reply_relay
from support.engine import EVENT, STREAM_HEAD, chunk
from support.fakes.engine import EngineConnection, FakeEngine, answering, http_reply
from support.pools import ForwardingFront
from unit.dispatch.test_proxied_request import request_for

BODY = b'{"model": "m", "stream": true}'
STREAM = STREAM_HEAD + chunk(EVENT) + b"0\r\n\r\n"
HEARTBEAT = chunk(b": keep-alive\n\n")


def post(path: str = "/v1/messages", body: bytes = BODY) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("reply", [STREAM, http_reply(b'{"error":{}}', 400), http_reply(b"{}", 503)])
async def test_a_heartbeat_while_the_connection_is_made(monkeypatch: pytest.MonkeyPatch, reply: bytes) -> None:
    """The client gets a comment while the proxy connects to the backend."""
    loop = asyncio.get_running_loop()
    resolve: Callable[..., Any] = loop.getaddrinfo
    cue = asyncio.Event()

    async def resolve_late(*arguments: Any, **options: Any) -> Any:
        await cue.wait()
        return await resolve(*arguments, **options)

    monkeypatch.setattr(loop, "getaddrinfo", resolve_late)
    async with FakeEngine(answering(reply)) as engine, ForwardingFront(engine, heartbeat_seconds=0.01) as proxy:
        client = await proxy.connect()
        client.send(post())
        assert (await client.head())[0] == 200
        assert await client.read(len(HEARTBEAT)) == HEARTBEAT
        cue.set()
        chunks = (await client.rest()).replace(HEARTBEAT, b"")
    assert b"HTTP/1.1" not in chunks
    assert (chunk(EVENT) in chunks) is (reply is STREAM)
    assert chunks.endswith(b"0\r\n\r\n")
    assert chunks.count(b"event: error") == (reply is not STREAM)


async def test_a_kept_alive_connection_that_breaks_after_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same attempt goes on with a fresh connection."""
    cue = asyncio.Event()

    async def closes_the_second_time(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(STREAM)
        await connection.request()
        await cue.wait()
        connection.finish()

    module = "inference_engine_proxy_server.wire.backend_connection"
    monkeypatch.setattr(f"{module}._CROSSING_SECONDS", 60.0)  # the machine may be busy
    async with FakeEngine(closes_the_second_time) as engine, ForwardingFront(engine, heartbeat_seconds=0.01) as proxy:
        await proxy.send(post())
        client = await proxy.connect()
        client.send(post())
        await client.head()
        assert await client.read(len(HEARTBEAT)) == HEARTBEAT
        cue.set()
        assert (await client.rest()).replace(HEARTBEAT, b"") == STREAM.partition(b"\r\n\r\n")[2]
    assert len(engine.connections) == 2


async def test_a_late_failure_counts_against_the_backend() -> None:
    cue = asyncio.Event()

    async def fails_late(connection: EngineConnection) -> None:
        while True:
            await connection.request()
            await cue.wait()
            connection.send(http_reply(b"{}", 504))

    async with FakeEngine(fails_late) as engine, ForwardingFront(engine, heartbeat_seconds=0.01) as proxy:
        for _ in range(5):
            client = await proxy.connect()
            client.send(post())
            await client.head()
            cue.set()
            await client.rest()
            cue.clear()
        [backend] = proxy.pool.backends
        assert backend.health.is_doubtful
    assert {exchange.status for exchange in proxy.observed} == {504}


async def test_a_failure_after_a_heartbeat_has_the_status_that_it_would_have_had() -> None:
    cue = asyncio.Event()

    async def breaks_late(connection: EngineConnection) -> None:
        await connection.request()
        await cue.wait()
        connection.reset()

    async with FakeEngine(breaks_late) as engine, ForwardingFront(engine, heartbeat_seconds=0.01) as proxy:
        client = await proxy.connect()
        client.send(post())
        await client.head()
        cue.set()
        await client.rest()
    assert [exchange.status for exchange in proxy.observed] == [BackendBroke.status]


def test_a_reply_that_has_begun_gets_no_heartbeat() -> None:
    """Also when its backend has just failed, and the failure has not been handled yet."""
    request, connection = request_for(body=BODY)
    request.begin(200, b"", b"content-type: text/event-stream\r\n", None)
    request.write(EVENT)
    send_heartbeat(request)
    assert len(connection.blocks) == 1


async def test_keep_alives_of_an_engine_do_not_begin_the_reply_to_a_page_of_another_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reply_relay, "_SILENT_SECONDS", 0.0)
    cue = asyncio.Event()
    allowed = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\naccess-control-allow-origin: *\r\n\r\n")

    async def reads_a_prompt(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(allowed, HEARTBEAT)
        await cue.wait()
        connection.send(chunk(EVENT), b"0\r\n\r\n")

    async with FakeEngine(reads_a_prompt) as engine, ForwardingFront(engine, heartbeat_seconds=0.01) as proxy:
        client = await proxy.connect()
        client.send(post().replace(b"Host: x", b"Host: x\r\nOrigin: http://page"))
        await asyncio.sleep(0.2)
        cue.set()
        _, _, fields = await client.head()
        assert fields["access-control-allow-origin"] == "*"
        assert await client.rest() == HEARTBEAT + chunk(EVENT) + b"0\r\n\r\n"
