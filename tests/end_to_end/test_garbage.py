"""When a request has ended, its memory is free: nothing refers to its objects, and they do not refer to each other."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import chunk
from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.http_client import Call, chat
from support.live_proxy import live_proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
PACKAGE = "inference_engine_proxy_server"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm"}]}'
EVENT = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
POLLS = {b" /v1/models ": http_reply(MODELS), b" /health ": http_reply()}
REQUESTS = 5

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


def alive() -> Counter[str]:
    """The objects of the package that exist, by type."""
    types = (type(one) for one in gc.get_objects())
    return Counter(kind.__name__ for kind in types if str(kind.__module__).startswith(PACKAGE))


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
    ],
)
async def test_a_request_leaves_nothing_behind(
    tmp_path: Path, body: dict[str, object], step: Step, has_ledger: bool
) -> None:
    # With a ledger, each reply has observers, and each stream has an editor.
    settings: dict[str, Any] = {"usage_file": str(tmp_path / "usage.db")} if has_ledger else {}
    await leaves_nothing_behind(body, step, backend_first_byte_timeout_seconds=0.1, **settings)


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize("step", [Call.reply, read_event_and_leave], ids=["no-answer-in-time", "client-leaves"])
async def test_a_stream_with_heartbeats_leaves_nothing_behind(step: Step) -> None:
    body = chat(stream=True, user="silent")
    await leaves_nothing_behind(body, step, backend_first_byte_timeout_seconds=0.6, stream_heartbeat_seconds=0.1)


async def leaves_nothing_behind(body: dict[str, object], step: Step, **settings: Any) -> None:
    async with FakeEngine(engine_script) as one, FakeEngine(engine_script) as other:
        async with live_proxy(one.url, other.url, **settings) as proxy:

            async def is_idle() -> bool:
                return not any(one["requests_in_flight"] for one in (await proxy.details()).values())

            async def serve() -> Counter[str]:
                for _ in range(REQUESTS):
                    async with Call(proxy.url, PATH, body) as call:
                        call.send()
                        await step(call)
                await eventually(is_idle)
                return alive()

            await serve()  # fills caches, and the pools of connections
            before = await serve()
            assert not {name: count for name, count in (await serve() - before).items() if count >= REQUESTS}
