"""A request leaves no reference cycle, so its memory is free at once and not at some later garbage collection."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

import pytest

from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.http_client import Call, chat
from support.live_proxy import live_proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
PACKAGE = "inference_engine_proxy_server"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"somebody"}]}'
EVENT = b'13\r\ndata: {"choices":1}\n\n\r\n'
REQUESTS = 5

Step = Callable[[Call], Awaitable[object]]


async def engine_script(connection: EngineConnection) -> None:
    """Answers polls; never ends a stream, breaks off one whose user is "broken", and answers other requests."""
    while True:
        request = await connection.request()
        if request.startswith(b"GET /v1/models "):
            connection.send(http_reply(MODELS))
        elif request.startswith(b"GET"):
            connection.send(http_reply(b"{}", 404))
        elif b'"broken"' in request:
            connection.send(HEAD, EVENT)
            connection.finish()
        elif b'"stream": true' in request:
            connection.send(HEAD, EVENT)
        else:
            connection.send(http_reply())


async def read_event_and_leave(call: Call) -> None:
    await call.head()
    await call.event()


@pytest.fixture
def collected_only_on_demand() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def garbage() -> Counter[str]:
    """The unreachable objects and frames of the package, by type."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = Counter(name for one in gc.garbage if (name := name_of(one)))
    gc.garbage.clear()
    gc.collect()
    return found


def name_of(one: object) -> str | None:
    if isinstance(one, FrameType):
        return one.f_code.co_qualname if PACKAGE in one.f_code.co_filename else None
    return type(one).__name__ if type(one).__module__.startswith(PACKAGE) else None


@pytest.mark.usefixtures("collected_only_on_demand")
@pytest.mark.parametrize(
    ("body", "step"),
    [
        pytest.param(chat(), Call.reply, id="whole-reply"),
        pytest.param(chat(stream=True, user="broken"), Call.reply, id="broken-stream"),
        pytest.param(chat(stream=True), read_event_and_leave, id="client-leaves-a-stream"),
        pytest.param(chat(stream=True), Call.reset, id="client-leaves-before-the-reply"),
    ],
)
async def test_a_request_leaves_no_reference_cycle(body: dict[str, object], step: Step) -> None:
    async with FakeEngine(engine_script) as engine, live_proxy(engine.url) as proxy:

        async def is_idle() -> bool:
            return not any(one["requests_in_flight"] for one in (await proxy.details()).values())

        async def serve_and_collect() -> Counter[str]:
            for _ in range(REQUESTS):
                async with Call(proxy.url, PATH, body) as call:
                    call.send()
                    await step(call)
            await eventually(is_idle)
            return garbage()

        await serve_and_collect()  # the first requests fill caches

        assert not await serve_and_collect()
