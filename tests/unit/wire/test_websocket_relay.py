"""Bytes before, during and after a WebSocket, seen from both sockets. The whole proxy runs, on either event loop."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1

import pytest

from inference_engine_proxy_server.wire import websocket_relay
from support.fakes.engine import EngineConnection, FakeEngine, Script, http_reply
from support.fakes.front import Client
from support.live_proxy import Proxy, live_proxy
from support.waiting import eventually

KEY = b"MDEyMzQ1Njc4OWFiY2RlZg=="
HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % KEY
)
ACCEPT = b64encode(sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())
FIELDS = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Accept: %b" % ACCEPT)
MODELS = http_reply(b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"somebody"}]}')
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def switching(*fields: bytes, line: bytes = b"HTTP/1.1 101 Switching Protocols") -> bytes:
    return b"\r\n".join((line, *(fields or FIELDS), b"", b""))


def answering_with(*blocks: bytes, then: Script | None = None) -> Script:
    """A script that answers polls, and a handshake with ``blocks`` one by one; ``then`` goes on from there."""

    async def script(connection: EngineConnection) -> None:
        while b"websocket" not in (await connection.request()):
            connection.send(MODELS)
        for block in blocks:
            connection.send(block)
            await asyncio.sleep(0.005)
        if then is not None:
            await then(connection)

    return script


@asynccontextmanager
async def relayed(script: Script) -> AsyncIterator[tuple[Client, FakeEngine, Proxy]]:
    """A client of a proxy in front of an engine with ``script``."""
    async with FakeEngine(script) as engine, live_proxy(engine.url) as proxy:
        yield Client(*await proxy.connect()), engine, proxy
        for connection in engine.connections:
            connection.reset()  # the proxy waits for open WebSockets before it stops


def socket_of(engine: FakeEngine) -> EngineConnection:
    """The engine's side of the latest WebSocket."""
    return [one for one in engine.connections if any(b"websocket" in request for request in one.requests)][-1]


async def received(connection: EngineConnection, size: int) -> bytes:
    """The first ``size`` bytes after the handshake."""
    start = len(connection.requests[-1])
    await eventually(lambda: len(connection.received) >= start + size)
    return bytes(connection.received[start:])


async def test_bytes_flow_in_both_directions_unchanged() -> None:
    async with relayed(answering_with(switching())) as (client, engine, proxy):
        client.send(HANDSHAKE)
        status, _, fields = await client.head()
        assert (status, fields["connection"], fields["upgrade"]) == (101, "upgrade", "websocket")
        assert fields["sec-websocket-accept"] == ACCEPT.decode()
        engine_side = socket_of(engine)
        client.send(b"\x81\x00" + SMUGGLED)
        assert await received(engine_side, 2 + len(SMUGGLED)) == b"\x81\x00" + SMUGGLED
        engine_side.send(b"HTTP/1.1 200 OK\r\n\r\n\0")
        assert await client.read(20) == b"HTTP/1.1 200 OK\r\n\r\n\0"
        assert await proxy.metric("websockets") == 1
        client.leave()
        assert await engine_side.ended == "eof"
        engine_side.finish()
        await eventually(proxy.is_at_rest)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_reply_in_pieces_and_the_bytes_after_it_arrive_whole(size: int) -> None:
    reply = b"HTTP/1.1 103 Early Hints\r\n\r\n" + switching() + b"first bytes"
    pieces = [reply[at : at + size] for at in range(0, len(reply), size)]
    async with relayed(answering_with(*pieces)) as (client, _, _):
        client.send(HANDSHAKE)
        assert (await client.head())[0] == 101
        assert await client.read(11) == b"first bytes"


@pytest.mark.parametrize("early", [SMUGGLED, b"x" * 300_000], ids=["a request", "more than is kept"])
async def test_bytes_ahead_of_the_switch_reach_the_engine_as_they_are(early: bytes) -> None:
    async def waits(connection: EngineConnection) -> None:
        await connection.cue.wait()
        connection.send(switching())

    async with relayed(answering_with(then=waits)) as (client, engine, _):
        client.send(HANDSHAKE + early)
        await eventually(lambda: any(b"websocket" in request for request in engine.requests))
        engine_side = socket_of(engine)
        await asyncio.sleep(0.05)
        assert await received(engine_side, 0) == b""
        engine_side.cue.set()
        assert (await client.head())[0] == 101
        client.send(b"later")
        assert await received(engine_side, len(early) + 5) == early + b"later"
        assert len([request for request in engine.requests if b"websocket" in request]) == 1


@pytest.mark.parametrize(
    "reply",
    [
        http_reply(b"no", 403),
        http_reply(b"yes", 200),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
async def test_bytes_ahead_of_a_refusal_are_no_request(reply: bytes) -> None:
    async with relayed(answering_with(reply)) as (client, engine, proxy):
        client.send(HANDSHAKE + SMUGGLED)
        status, _, fields = await client.head()
        assert status == int(reply[9:12])
        assert fields["connection"] == "close"
        assert b"HTTP/1.1" not in await client.rest()
        assert not any(b"smuggled" in request for request in engine.requests)
        assert b"smuggled" not in socket_of(engine).received
        await eventually(proxy.is_at_rest)
        assert await socket_of(engine).ended  # the connection serves no other request


@pytest.mark.parametrize(
    "reply",
    [
        switching(*FIELDS[1:]),
        switching(FIELDS[0], FIELDS[2]),
        switching(*FIELDS[:2]),
        switching(*FIELDS[:2], b"Sec-WebSocket-Accept: " + b64encode(b"\0" * 20)),
        switching(*FIELDS, FIELDS[2]),
        switching(FIELDS[0], b"Upgrade: h2c", FIELDS[2]),
        switching(b"Connection: close", *FIELDS[1:]),
        switching(*FIELDS, b"Content-Length: 5"),
        switching(*FIELDS, b"Transfer-Encoding: chunked"),
        switching(line=b"HTTP/1.0 101 Switching Protocols"),
    ],
)
async def test_an_invalid_switch_is_refused(reply: bytes) -> None:
    async with relayed(answering_with(reply + b"bytes")) as (client, _, proxy):
        client.send(HANDSHAKE)
        assert (await client.head())[0] == 502
        assert b"invalid_backend_reply" in await client.rest()
        await eventually(proxy.is_at_rest)


async def test_unusual_notations_of_a_valid_switch_are_accepted() -> None:
    fields = (b"connection:keep-alive ,UPGRADE", b"UPGRADE:\tWebSocket ", FIELDS[2], b"Content-Length: 0")
    async with relayed(answering_with(switching(*fields, line=b"HTTP/1.1 101"))) as (client, _, _):
        client.send(HANDSHAKE)
        status, _, seen = await client.head()
        assert (status, seen["upgrade"], "content-length" in seen) == (101, "websocket", False)


async def test_the_engine_may_still_send_after_the_client_has_ended() -> None:
    async def sends_late(connection: EngineConnection) -> None:
        assert await connection.ended == "eof"
        connection.send(b"y" * 1_000_000)
        connection.finish()

    async with relayed(answering_with(switching(), then=sends_late)) as (client, _, proxy):
        client.send(HANDSHAKE)
        await client.head()
        client.half_close()
        assert await client.rest() == b"y" * 1_000_000
        await eventually(proxy.is_at_rest)
        assert await proxy.metric("stream_aborts_total") == 0


async def test_the_client_may_still_send_after_the_engine_has_ended() -> None:
    async def ends_first(connection: EngineConnection) -> None:
        connection.end_sending()
        await connection.ended

    async with relayed(answering_with(switching(), then=ends_first)) as (client, engine, proxy):
        client.send(HANDSHAKE)
        await client.head()
        assert await client.some() == b""
        client.send(b"z" * 1_000_000)
        client.leave()
        assert await received(socket_of(engine), 1_000_000) == b"z" * 1_000_000
        socket_of(engine).finish()
        await eventually(proxy.is_at_rest)


@pytest.mark.parametrize("first", ["client", "engine"])
async def test_a_side_that_never_ends_is_cut_off(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_relay, "_CLOSING_SECONDS", 0.3)
    async with relayed(answering_with(switching())) as (client, engine, proxy):
        client.send(HANDSHAKE)
        await client.head()
        if first == "client":
            client.half_close()
        else:
            socket_of(engine).end_sending()
        await eventually(proxy.is_at_rest)
        assert await client.rest() == b""
        assert await socket_of(engine).ended in ("eof", "reset")


async def test_resets_by_the_engine_end_the_client_and_are_no_evidence() -> None:
    async with relayed(answering_with(switching() + b"last")) as (_, engine, proxy):
        for _ in range(4):
            client = Client(*await proxy.connect())
            client.send(HANDSHAKE)
            await client.head()
            assert await client.read(4) == b"last"
            polls = len(engine.requests)
            socket_of(engine).reset()
            assert await client.rest() == b""
            await eventually(proxy.is_at_rest)
            await eventually(lambda: len(engine.requests) > polls)  # noqa: B023 - asked at once whether it still works
            assert await proxy.state(engine) == "up"
        assert await proxy.metric("stream_aborts_total", side="backend") == 4


async def test_a_reset_by_the_client_ends_the_engine() -> None:
    async with relayed(answering_with(switching())) as (client, engine, proxy):
        client.send(HANDSHAKE)
        await client.head()
        client.reset()
        assert await socket_of(engine).ended in ("eof", "reset")
        await eventually(proxy.is_at_rest)
        assert await proxy.metric("stream_aborts_total", side="client") == 1
