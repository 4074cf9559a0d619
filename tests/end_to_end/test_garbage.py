"""When a request has ended, its memory is free: nothing refers to its objects, and they do not refer to each other."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from end_to_end.breaking_engine import SPEECHES, reports_an_error, two_engines
from support.engine import chunk
from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.http_client import Call, chat, send
from support.live_proxy import Proxy, live_proxy
from support.otlp_receiver import otlp_receiver
from support.waiting import eventually
from support.websocket_engine import WebSocketEngine, websocket

PATH = "/v1/chat/completions"
PACKAGE = "inference_engine_proxy_server"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm"}]}'
EVENT = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
POLLS = {b" /v1/models ": http_reply(MODELS), b" /health ": http_reply()}
REQUESTS = 5
FLEET_FILE = "models: {m: {aliases: [alias], parameters: {set: {top_k: 1}, system_prompt: x}}}"

Step = Callable[[Call], Awaitable[object]]


async def engine_script(connection: EngineConnection) -> None:
    """Answers polls, and a request as its user says; a stream without a user never ends."""
    while True:
        request = await connection.request()
        if request.startswith(b"GET"):
            connection.send(next((reply for path, reply in POLLS.items() if path in request), http_reply(b"{}", 404)))
        elif b'"declined"' in request:
            connection.send(http_reply(b"{}", 503))
        elif b'"silent"' in request:
            continue
        elif b'"dropped"' in request:
            connection.finish()
        elif b'"stream": true' in request:
            await stream(connection, request)
        else:
            connection.send(http_reply())


async def stream(connection: EngineConnection, request: bytes) -> None:
    connection.send(HEAD, EVENT)
    if b'"broken"' in request:
        connection.finish()
    while b'"steady"' in request and not connection.ended.done():
        await asyncio.sleep(0.001)  # so that each event arrives on its own, and takes the direct path
        connection.send(EVENT)


async def read_event_and_leave(call: Call) -> None:
    await call.head()
    await call.event()


async def read_events_and_leave(call: Call) -> None:
    await call.head()
    for _ in range(5):
        await call.event()


@pytest.fixture
def without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def alive(proxy: Proxy) -> Counter[str]:
    """The objects of the package that exist, by type, when all requests that have ended are counted."""
    assert (await send(proxy.url, "/metrics")).status == 200
    counts = Counter(map(type, gc.get_objects()))  # in C: a slow loop here would make the proxy reject requests
    await asyncio.sleep(0.25)  # time to notice that the event loop is no longer late
    return Counter({one.__name__: count for one, count in counts.items() if str(one.__module__).startswith(PACKAGE)})


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize("has_ledger", [False, True], ids=["plain", "with-ledger"])
@pytest.mark.parametrize(
    ("body", "step"),
    [
        pytest.param(chat(), Call.reply, id="whole-reply"),
        pytest.param(chat(stream=True, user="broken"), Call.reply, id="broken-stream"),
        pytest.param(chat(user="declined"), Call.reply, id="declined-by-both-backends"),
        pytest.param(chat(user="silent"), Call.reply, id="no-answer-in-time"),
        pytest.param(chat(user="dropped"), Call.reply, id="dropped-by-both-backends"),
        pytest.param(chat(stream=True), read_event_and_leave, id="client-leaves-a-stream"),
        pytest.param(chat(stream=True, user="steady"), read_events_and_leave, id="client-leaves-a-steady-stream"),
        pytest.param(chat(stream=True), Call.reset, id="client-leaves-before-the-reply"),
        pytest.param(chat(model="alias"), Call.reply, id="patched-body"),
        pytest.param(chat(model="alias", stream=True, user="broken"), Call.reply, id="broken-stream-of-an-alias"),
        pytest.param(chat(model="alas"), Call.reply, id="unknown-model"),
        pytest.param([], Call.reply, id="body-that-cannot-be-patched"),
    ],
)
async def test_a_request_leaves_nothing_behind(tmp_path: Path, body: object, step: Step, has_ledger: bool) -> None:
    # With a ledger, each reply has observers, and each stream has an editor.
    settings: dict[str, Any] = {"usage_file": str(tmp_path / "usage.db")} if has_ledger else {}
    await leaves_nothing_behind(body, step, backend_first_byte_timeout_seconds=0.1, **settings)


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize("step", [Call.reply, read_event_and_leave], ids=["no-answer-in-time", "client-leaves"])
async def test_a_stream_with_heartbeats_leaves_nothing_behind(step: Step) -> None:
    body = chat(stream=True, user="silent")
    await leaves_nothing_behind(body, step, backend_first_byte_timeout_seconds=0.3, stream_heartbeat_seconds=0.05)


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize(
    ("body", "step"),
    [
        pytest.param(chat(), Call.reply, id="whole-reply"),
        pytest.param(chat(stream=True, user="broken"), Call.reply, id="broken-stream"),
        pytest.param(chat(user="declined"), Call.reply, id="declined-by-both-backends"),
        pytest.param(chat(stream=True, user="steady"), read_events_and_leave, id="client-leaves-a-steady-stream"),
        pytest.param(chat(model="alas"), Call.reply, id="unknown-model"),
    ],
)
async def test_a_traced_request_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, body: object, step: Step
) -> None:
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_url)
        await leaves_nothing_behind(body, step, tracing=True)
        assert len(receiver.spans) == 3 * REQUESTS


async def leaves_nothing_behind(body: object, step: Step, **settings: Any) -> None:
    path = PATH if body else f"{PATH}?model=alias"
    async with FakeEngine(engine_script) as one, FakeEngine(engine_script) as other:
        async with live_proxy(one.url, other.url, fleet_file=FLEET_FILE, **settings) as proxy:

            async def is_idle() -> bool:
                return not any(one["requests_in_flight"] for one in (await proxy.details()).values())

            async def serve() -> Counter[str]:
                for _ in range(REQUESTS):
                    async with Call(proxy.url, path, body) as call:
                        call.send()
                        await step(call)
                await eventually(is_idle)
                return await alive(proxy)

            await serve()  # fills caches, and the pools of connections
            before = await serve()
            assert not {name: count for name, count in (await serve() - before).items() if count >= REQUESTS}


async def leave(client: ClientConnection, engine: WebSocketEngine) -> None:
    await client.close()


async def be_left(client: ClientConnection, engine: WebSocketEngine) -> None:
    await engine.sockets[-1].close()
    await client.wait_closed()


async def break_off(client: ClientConnection, engine: WebSocketEngine) -> None:
    client.transport.abort()


async def be_broken_off(client: ClientConnection, engine: WebSocketEngine) -> None:
    broken = engine.sockets[-1].transport
    broken.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    broken.abort()
    await client.wait_closed()


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize("end", [leave, be_left, break_off, be_broken_off])
async def test_a_websocket_leaves_nothing_behind(end: Callable[..., Awaitable[None]]) -> None:
    async with WebSocketEngine() as engine, live_proxy(engine.url) as proxy:

        async def serve() -> Counter[str]:
            for _ in range(REQUESTS):
                async with websocket(proxy) as client:
                    await client.send("hello")
                    assert await client.recv() == "hello"
                    await end(client, engine)
                await eventually(proxy.is_at_rest)
            return await alive(proxy)

        await serve()
        before = await serve()
        assert not {name: count for name, count in (await serve() - before).items() if count >= REQUESTS}


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize("path", SPEECHES)
async def test_a_resumed_stream_leaves_nothing_behind(path: str) -> None:
    async with two_engines() as fleet:

        async def serve() -> Counter[str]:
            for _ in range(REQUESTS):
                fleet.plan.steps.append(reports_an_error)
                await fleet.stream(path)
            return await alive(fleet.proxy)

        await serve()  # fills caches, and the pools of connections
        before = await serve()
        assert not {name: count for name, count in (await serve() - before).items() if count >= REQUESTS}
        assert await fleet.counted("resumes") == {"backend_disconnected": 3 * REQUESTS}
