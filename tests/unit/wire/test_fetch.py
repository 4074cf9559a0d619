from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from inference_engine_proxy_server.errors import BackendBroke, BackendUnreachable, InvalidReply
from inference_engine_proxy_server.wire.backend_connections import BackendConnections
from inference_engine_proxy_server.wire.fetch import Inquiry
from support.fakes.back import LIMITS, connections_to
from support.fakes.engine import EngineConnection, FakeEngine, answering, http_reply
from support.ports import unused_url

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def status_and_body(connections: BackendConnections, timeout_seconds: float = 20) -> tuple[int, bytes]:
    with closing(Inquiry(connections, limit_bytes=10)) as inquiry:
        reply = await inquiry.fetch("/metrics?x=1", timeout_seconds=timeout_seconds)
        return reply.status, reply.body


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        (http_reply(b"0123456789"), 200, b"0123456789"),
        (http_reply(b"", status=503), 503, b""),
        (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200, b"hello"),
    ],
    ids=["as-long-as-allowed", "empty", "chunked"],
)
async def test_fetch_returns_the_whole_reply(reply: bytes, status: int, body: bytes) -> None:
    async with FakeEngine(answering(reply)) as engine, connections_to(engine.url + "/base") as connections:
        assert await status_and_body(connections) == (status, body)
        (request,) = engine.requests
        lines = request[:-4].split(b"\r\n")
        assert lines[0] == b"GET /base/metrics?x=1 HTTP/1.1"
        assert b"host: 127.0.0.1:%d" % engine.port in lines
        assert not any(line.startswith(b"connection:") for line in lines)


async def test_fetches_of_one_poll_share_a_connection_if_the_backend_keeps_it() -> None:
    async def closes_after_two(connection: EngineConnection) -> None:
        for _ in range(2):
            await connection.request()
            connection.send(http_reply())
        connection.finish()

    async with FakeEngine(closes_after_two) as engine, connections_to(engine.url) as connections:
        for inquiries in (1, 2):
            with closing(Inquiry(connections, limit_bytes=10)) as inquiry:
                for _ in range(4):
                    assert (await inquiry.fetch("/", timeout_seconds=20)).status == 200
            assert len(engine.connections) == 2 * inquiries  # each inquiry checks that the backend accepts a connection


async def test_a_new_connection_is_opened_after_a_reply_that_closes_it() -> None:
    reply = http_reply().replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
    async with FakeEngine(answering(reply)) as engine, connections_to(engine.url) as connections:
        with closing(Inquiry(connections, limit_bytes=10)) as inquiry:
            for _ in range(2):
                assert (await inquiry.fetch("/", timeout_seconds=20)).status == 200
        assert len(engine.connections) == 2


async def test_a_fetch_connection_is_not_used_for_requests() -> None:
    async with FakeEngine(answering(http_reply())) as engine, connections_to(engine.url) as connections:
        await status_and_body(connections)
        assert connections.take_idle() is None
        await engine.connections[0].ended


@pytest.mark.parametrize(
    "reply",
    [
        http_reply(b"01234567890"),
        CHUNKED + b"b\r\n01234567890\r\n0\r\n\r\n",
        CHUNKED + b"9\r\n012345678\r\n2\r\n01\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1000),
        b"nonsense\r\n\r\n",
    ],
    ids=["length", "chunk", "chunks", "until-closed", "no-http"],
)
async def test_a_reply_too_long_or_malformed_is_refused(reply: bytes) -> None:
    async with FakeEngine(answering(reply)) as engine, connections_to(engine.url) as connections:
        with pytest.raises(InvalidReply):
            await status_and_body(connections)
        await engine.connections[0].ended


async def test_a_reply_that_is_not_complete_in_time_is_abandoned() -> None:
    async def stalls(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(CHUNKED)

    async with FakeEngine(stalls) as engine, connections_to(engine.url) as connections:
        with pytest.raises(TimeoutError):
            await status_and_body(connections, timeout_seconds=0.1)
        await engine.connections[0].ended
        assert connections.activity().last_byte_at == 0


async def test_an_unreachable_or_broken_backend_raises_an_error() -> None:
    async def breaks(connection: EngineConnection) -> None:
        await connection.request()
        connection.reset()

    async with connections_to(unused_url()) as connections:
        with pytest.raises(BackendUnreachable):
            await status_and_body(connections)
    async with FakeEngine(breaks) as engine, connections_to(engine.url) as connections:
        with pytest.raises(BackendBroke):
            await status_and_body(connections)


@pytest.mark.parametrize("timeout_seconds", [0.8, 2.0])
async def test_a_fetch_without_a_connection_in_time_says_why(timeout_seconds: float) -> None:
    """Whichever deadline is the shorter one: that of the connection, or that of the fetch."""

    async def says_nothing(connection: EngineConnection) -> None:
        await connection.first_bytes()

    limits = replace(LIMITS, connect_seconds=1.2)
    async with FakeEngine(says_nothing) as engine:
        async with connections_to(engine.url.replace("http", "https"), limits) as connections:
            with pytest.raises(BackendUnreachable) as raised:
                await status_and_body(connections, timeout_seconds)
    assert "TLS handshake" in raised.value.reason
