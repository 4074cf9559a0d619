"""What docs/behind-a-proxy.md promises of NGINX and Caddy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from behind_a_proxy.front import FRONTS, front
from support.fakes.engine import EngineConnection, FakeEngine, answering, http_reply
from support.http_client import Call, send
from support.program import Proxy, run_command
from support.waiting import eventually
from support.websocket_engine import PATH as WEBSOCKET_PATH
from support.websocket_engine import WebSocketEngine

CHAT = "/v1/chat/completions"
EVENTS = 20
MODELS = http_reply(b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"fake"}]}')
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
SETTINGS = {"METRICS_CACHE_TTL_SECONDS": "60", "TRUSTED_PROXIES": "private", "ADMIN_KEY": "admin"}
FOR_OPERATORS = (
    "/metrics", "/metrics/", "/metrics?x=1", "/METRICS", "/%6detrics", "/admin", "/admin/settings", "/Admin/settings",
)  # fmt: skip
LARGE = 20_000_000


async def streaming(connection: EngineConnection, media_type: bytes = b"text/event-stream") -> None:
    """Answers polls; a POST gets a stream whose events after the first each wait for their cue."""
    while not (await connection.request()).startswith(b"POST "):
        connection.send(MODELS)
    connection.send(STREAM % media_type)
    for number in range(EVENTS):
        connection.send(b"b\r\ndata: %3d\n\n\r\n" % number)
        await connection.cue.wait()
        connection.cue.clear()
    connection.send(b"0\r\n\r\n")


async def closing(connection: EngineConnection) -> None:
    """Answers polls; closes the connection on a POST."""
    while not (await connection.request()).startswith(b"POST "):
        connection.send(MODELS)
    connection.finish()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(answering(MODELS)) as running:
        yield running


@pytest.fixture
async def proxy(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Proxy]:
    # In a thread, because the proxy polls the engine, which runs in this event loop.
    running = await asyncio.to_thread(Proxy, tmp_path / "proxy", [engine.url], **SETTINGS)
    yield running
    await asyncio.to_thread(running.stop)


@pytest.fixture(params=FRONTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(name: str, tmp_path: Path, proxy: Proxy) -> Iterator[str]:
    (tmp_path / "front").mkdir()
    with front(name, tmp_path / "front", proxy.url) as running:
        yield running


def posting(engine: FakeEngine) -> EngineConnection:
    [connection] = [one for one in engine.connections if one.requests and one.requests[-1].startswith(b"POST ")]
    return connection


@pytest.mark.parametrize(("path", "media_type"), [(CHAT, b"text/event-stream"), ("/api/chat", b"application/x-ndjson")])
async def test_each_event_arrives_before_the_next_one_is_generated(
    engine: FakeEngine, url: str, path: str, media_type: bytes
) -> None:
    engine.script = lambda connection: streaming(connection, media_type)
    async with Call(url, path, {"model": "m", "stream": True}) as stream:
        stream.send()
        assert await stream.head() == 200
        for number in range(EVENTS):
            assert await stream.event() == b"data: %3d\n\n" % number
            posting(engine).cue.set()
        assert await stream.event() == b""
    assert stream.complete


async def test_client_that_leaves_frees_its_slot(engine: FakeEngine, proxy: Proxy, url: str) -> None:
    engine.script = streaming
    async with Call(url, CHAT, {"model": "m", "stream": True}) as stream:
        stream.send()
        assert await stream.head() == 200
        assert await stream.event()
        assert await proxy.in_flight() == 1

    async def is_free() -> bool:
        return await proxy.in_flight() == 0

    await eventually(is_free)
    assert await posting(engine).ended


async def test_websocket_opens(name: str, tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(WebSocketEngine())
        proxy = await asyncio.to_thread(Proxy, tmp_path / "proxy", [engine.url], **SETTINGS)
        stack.push_async_callback(asyncio.to_thread, proxy.stop)
        address = stack.enter_context(front(name, tmp_path / "front", proxy.url)).replace("http", "ws", 1)
        async with connect(f"{address}{WEBSOCKET_PATH}", proxy=None) as client:
            await client.send("x" * 100_000)
            assert await client.recv() == "x" * 100_000


async def test_paths_of_operators_are_closed_and_others_are_not(url: str, proxy: Proxy) -> None:
    key = {"X-Admin-Key": "admin"}
    assert (await send(proxy.url, "/admin/settings", headers=key)).status == 200
    found = {path: (await send(url, path, headers=key)).status for path in FOR_OPERATORS}
    assert found == dict.fromkeys(FOR_OPERATORS, 404)
    for path in ("/health", "/readyz", "/v1/models", "/docs"):
        assert (await send(url, path)).status == 200


async def test_client_cannot_choose_its_address(engine: FakeEngine, url: str) -> None:
    assert (await send(url, "/x", headers={"X-Forwarded-For": "6.6.6.6"})).status == 200
    assert b"6.6.6.6" not in engine.requests[-1]
    client, before = "127.0.0.1", "127.0.0.1"
    assert f"\r\nx-forwarded-for: {client}, {before}\r\n".encode() in engine.requests[-1]


async def test_large_bodies_and_headers_pass(engine: FakeEngine, url: str) -> None:
    reply = await send(url, CHAT, {"model": "m", "padding": "x" * LARGE}, headers={"Authorization": "k" * 30_000})
    assert reply.status == 200
    assert len(engine.requests[-1]) > LARGE


async def test_requests_are_not_repeated(engine: FakeEngine, url: str) -> None:
    engine.script = closing
    reply = await send(url, "/v1/responses", {"model": "m"})
    assert (reply.status, reply.json["error"]["code"]) == (502, "backend_disconnected")
    assert len([request for request in engine.requests if request.startswith(b"POST ")]) == 1


async def test_doctor_finds_nothing(url: str, proxy: Proxy, tmp_path: Path) -> None:
    port = proxy.url.rpartition(":")[2]
    (tmp_path / "doctor").mkdir()
    variables = {"BACKENDS": "http://127.0.0.1:9", "PORT": port}
    arguments = ("doctor", "--json", "--through", url)
    done = await asyncio.to_thread(run_command, tmp_path / "doctor", *arguments, **variables)
    codes = [finding["code"] for finding in json.loads(done.stdout)["findings"]]
    assert [code for code in codes if code.startswith("public_")] == []
