"""Clients that wait long for their stream get comments first, from engines that are scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from support.engine import STREAM_HEAD, Answer, answers_with, chunk
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet
from support.http_client import Call, chat
from support.live_proxy import Proxy
from support.waiting import eventually

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
HEARTBEAT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"
OFTEN = {"stream_heartbeat_seconds": 0.1}  # at each check of the deadlines, which is every 0.25 s
SEVERAL = 3


def event(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    members = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(members, separators=(',', ':'))}\n\n".encode()


ANSWER = [event("one"), event(" two"), event("", "stop"), DONE]
STREAM = [STREAM_HEAD, *map(chunk, ANSWER), LAST_CHUNK]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        fleet = Fleet(stack, keeps_access_log=True)
        yield fleet
        await fleet.nothing_is_left()


def when(cue: asyncio.Event, *blocks: bytes, first: bytes = b"") -> Answer:
    """Sends ``first`` at once, and ``blocks`` when ``cue`` is set."""

    async def answer(connection: EngineConnection) -> None:
        connection.send(first)
        await cue.wait()
        connection.send(*blocks)

    return answer


def breaks_when(cue: asyncio.Event, first: bytes = b"") -> Answer:
    """Sends ``first`` at once, and resets the connection when ``cue`` is set."""

    async def answer(connection: EngineConnection) -> None:
        connection.send(first)
        await cue.wait()
        connection.reset()

    return answer


def asked(proxy: Proxy, path: str = CHAT, **headers: str) -> Call:
    return Call(proxy.url, path, chat(stream=True), headers=headers)


async def heartbeats(call: Call, count: int = SEVERAL) -> None:
    """Send ``call``, and read the head and ``count`` heartbeats of its stream."""
    call.send()
    assert await call.head() == 200
    assert call.headers["content-type"] == "text/event-stream"
    assert [await call.event() for _ in range(count)] == [HEARTBEAT] * count


async def rest(call: Call) -> list[bytes]:
    """The events that are left, without heartbeats; each must be whole."""
    events: list[bytes] = []
    while found := await call.event():
        assert found.endswith(b"\n\n")
        events.append(found)
        assert len(events) < 100  # else heartbeats go on for ever
    return [one for one in events if one != HEARTBEAT]


async def log_line(fleet: Fleet) -> str:
    """The only line of a POST in the access log."""
    await eventually(lambda: "POST" in fleet.access_log.getvalue())
    [line] = [line for line in fleet.access_log.getvalue().splitlines() if "POST" in line]
    return line


@pytest.mark.parametrize("first", [b"", STREAM_HEAD], ids=["no-head", "head-at-once"])
@pytest.mark.parametrize("resume", ["on", "off"])
async def test_a_long_prefill_sends_heartbeats_and_then_the_stream(fleet: Fleet, first: bytes, resume: str) -> None:
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, *STREAM[bool(first) :], first=first))
    proxy = await fleet.proxy(engine, **OFTEN, stream_resume=resume)
    async with asked(proxy) as call:
        await heartbeats(call)
        cue.set()
        assert await rest(call) == ANSWER
        assert call.complete
    assert "x-backend" not in call.headers
    assert " 200 complete " in await log_line(fleet)
    assert engine.url in await log_line(fleet)


async def test_a_stream_of_known_length_follows_heartbeats(fleet: Fleet) -> None:
    cue = asyncio.Event()
    whole = http_reply(b"".join(ANSWER), fields=b"content-type: text/event-stream\r\n")
    engine = await fleet.engine(when(cue, whole))
    proxy = await fleet.proxy(engine, **OFTEN)
    async with asked(proxy, MESSAGES) as call:
        await heartbeats(call)
        cue.set()
        assert await rest(call) == ANSWER
        assert call.complete


async def test_heartbeats_end_with_the_first_event(fleet: Fleet) -> None:
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, *STREAM[2:], first=b"".join(STREAM[:2])))
    proxy = await fleet.proxy(engine, **OFTEN)
    async with asked(proxy) as call:
        call.send()
        assert await call.head() == 200
        assert call.headers["x-backend"] == engine.url
        await asyncio.sleep(1)
        cue.set()
        events = []
        while found := await call.event():
            events.append(found)
    assert events == ANSWER


async def test_an_event_that_has_begun_is_not_interrupted(fleet: Fleet) -> None:
    """The proxy holds the event until it is whole, because the stream could be resumed."""
    cue = asyncio.Event()
    long = event("long " * 200)
    engine = await fleet.engine(
        when(cue, chunk(long[700:]), chunk(DONE), LAST_CHUNK, first=STREAM_HEAD + chunk(long[:700]))
    )
    proxy = await fleet.proxy(engine, **OFTEN)
    async with asked(proxy) as call:
        call.send()
        await asyncio.sleep(1)
        cue.set()
        assert await call.head() == 200
        assert call.headers["x-backend"] == engine.url
        assert [await call.event() for _ in range(2)] == [long, DONE]


async def test_a_stream_that_begins_in_time_has_no_heartbeats(fleet: Fleet) -> None:
    engine = await fleet.engine(answers_with(*STREAM))
    proxy = await fleet.proxy(engine)
    reply = await proxy.post(body=chat(stream=True))
    assert reply.body == b"".join(ANSWER)


@pytest.mark.parametrize("seconds", [0, 45])
async def test_none_is_sent_before_its_time(fleet: Fleet, seconds: float) -> None:
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, http_reply(b'{"error": "its own"}', 400)))
    proxy = await fleet.proxy(engine, stream_heartbeat_seconds=seconds)
    async with asked(proxy) as call:
        call.send()
        await asyncio.sleep(1)
        cue.set()
        assert (await call.reply()).status == 400


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (CHAT, chat(), {}),
        ("/api/chat", chat(stream=True), {}),
        ("/v1/audio/speech", chat(stream=True), {}),
        (CHAT, chat(stream=True), {"Origin": "https://elsewhere.example"}),
    ],
    ids=["not-streamed", "ndjson", "unknown-format", "page-of-another-origin"],
)
async def test_replies_that_cannot_begin_with_a_comment_have_none(
    fleet: Fleet, path: str, body: dict[str, object], headers: dict[str, str]
) -> None:
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, http_reply(b'{"error": "its own"}', 400)))
    proxy = await fleet.proxy(engine, **OFTEN)
    async with Call(proxy.url, path, body, headers=headers) as call:
        call.send()
        await asyncio.sleep(1)
        cue.set()
        assert (await call.reply()).status == 400


async def test_a_page_of_the_proxys_own_origin_gets_heartbeats(fleet: Fleet) -> None:
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, *STREAM))
    proxy = await fleet.proxy(engine, **OFTEN)
    async with asked(proxy, Origin=proxy.url) as call:
        await heartbeats(call)
        cue.set()
        assert await rest(call) == ANSWER


async def test_a_client_of_http_1_0_gets_heartbeats(fleet: Fleet) -> None:
    """NGINX before 1.29.7 is such a client."""
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, *STREAM))
    proxy = await fleet.proxy(engine, **OFTEN)
    reader, writer = await proxy.connect()
    body = json.dumps(chat(stream=True)).encode()
    writer.write(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert await reader.readexactly(SEVERAL * len(HEARTBEAT)) == SEVERAL * HEARTBEAT
    cue.set()
    assert (await reader.read()).replace(HEARTBEAT, b"") == b"".join(ANSWER)


OWN_ERRORS: dict[str, dict[str, Any]] = {
    CHAT: {"error": {"message": "Its own.", "type": "invalid_request_error", "code": 400}},
    MESSAGES: {"type": "error", "error": {"type": "invalid_request_error", "message": "Its own."}},
    RESPONSES: {"error": {"message": "Its own.", "type": "invalid_request_error", "code": 400}},
}
EVENT_NAMES = {CHAT: None, MESSAGES: "error", RESPONSES: "response.failed"}


def read_event(block: bytes) -> tuple[str | None, dict[str, Any]]:
    """Name and data of an event."""
    *names, data = block.decode().removesuffix("\n\n").split("\n")
    return names[0].removeprefix("event: ") if names else None, json.loads(data.removeprefix("data: "))


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503, 504])
@pytest.mark.parametrize("path", OWN_ERRORS)
async def test_an_error_of_the_engine_after_a_heartbeat_is_one_event(fleet: Fleet, path: str, status: int) -> None:
    """Some of these statuses are held until it is clear that no other backend can do better."""
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, http_reply(json.dumps(OWN_ERRORS[path]).encode(), status)))
    proxy = await fleet.proxy(engine, **OFTEN)
    async with asked(proxy, path) as call:
        await heartbeats(call)
        cue.set()
        [error] = await rest(call)
    name, data = read_event(error)
    assert name == EVENT_NAMES[path]
    assert data["error"] == OWN_ERRORS[path]["error"]
    if path == RESPONSES:
        assert data["response"]["error"]["message"] == "Its own."
    assert f" {status} complete " in await log_line(fleet)


@pytest.mark.parametrize("path", OWN_ERRORS)
async def test_an_error_of_the_proxy_after_a_heartbeat_is_an_event_without_a_clean_end(fleet: Fleet, path: str) -> None:
    engine = await fleet.engine(when(asyncio.Event()))
    proxy = await fleet.proxy(engine, **OFTEN, backend_first_byte_timeout_seconds=1.5)
    async with asked(proxy, path) as call:
        await heartbeats(call, 1)
        [error] = await rest(call)
        assert not call.complete
    name, data = read_event(error)
    assert name == EVENT_NAMES[path]
    assert data["error"]["message"] == "The backend did not answer in time."
    assert " 504 broken backend=- " in await log_line(fleet)


async def test_a_compressed_reply_after_a_heartbeat_is_an_error(fleet: Fleet) -> None:
    cue = asyncio.Event()
    fields = b"content-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
    engine = await fleet.engine(when(cue, http_reply(b"\x1f\x8b not readable", fields=fields)))
    proxy = await fleet.proxy(engine, **OFTEN)
    async with asked(proxy) as call:
        await heartbeats(call)
        cue.set()
        [error] = await rest(call)
    assert "compressed" in read_event(error)[1]["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("first", [b"", STREAM_HEAD], ids=["no-head", "head-at-once"])
async def test_a_backend_that_breaks_after_a_heartbeat_is_replaced(fleet: Fleet, path: str, first: bytes) -> None:
    cue, second = asyncio.Event(), asyncio.Event()
    breaking = await fleet.engine(breaks_when(cue, first))
    other = await fleet.engine(when(second, *STREAM), processing=5)
    proxy = await fleet.proxy(breaking, other, **OFTEN)
    async with asked(proxy, path) as call:
        await heartbeats(call)
        cue.set()
        await eventually(lambda: other.served)
        assert [await call.event() for _ in range(SEVERAL)] == [HEARTBEAT] * SEVERAL
        second.set()
        assert await rest(call) == ANSWER
        assert call.complete
    assert await proxy.retries("backend_disconnected") == 1


async def test_a_declined_request_is_retried_after_a_heartbeat(fleet: Fleet) -> None:
    cue = asyncio.Event()
    declining = await fleet.engine(when(cue, http_reply(b"{}", 503)))
    other = await fleet.engine(answers_with(*STREAM), processing=5)
    proxy = await fleet.proxy(declining, other, **OFTEN)
    async with asked(proxy) as call:
        await heartbeats(call)
        cue.set()
        assert await rest(call) == ANSWER
    assert await proxy.retries("backend_declined") == 1


async def test_a_heartbeat_is_no_progress_of_the_backend(fleet: Fleet) -> None:
    """It has sent a head and then nothing, and must not be taken for one that works."""
    engine = await fleet.engine(when(asyncio.Event(), first=STREAM_HEAD))
    proxy = await fleet.proxy(engine, **OFTEN, backend_stream_idle_timeout_seconds=1.5)
    async with asked(proxy) as call:
        await heartbeats(call, 1)
        [error] = await rest(call)
    assert read_event(error)[1]["error"]["code"] == "backend_timeout"


async def test_a_frozen_backend_is_noticed_in_spite_of_heartbeats(fleet: Fleet) -> None:
    async def hangs(connection: EngineConnection) -> None:
        await connection.ended

    frozen = await fleet.engine(when(asyncio.Event(), first=STREAM_HEAD))
    other = await fleet.engine(answers_with(*STREAM), processing=5)
    proxy = await fleet.proxy(frozen, other, **OFTEN)
    async with asked(proxy) as call:
        await heartbeats(call, 1)
        frozen.health = hangs
        assert await rest(call) == ANSWER
    assert await proxy.retries("request_moved") == 1


async def test_a_stream_in_the_queue_gets_heartbeats(fleet: Fleet) -> None:
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, *STREAM))
    engine.slots = 1
    proxy = await fleet.proxy(engine, **OFTEN, backend_queue_allowance=0)
    async with asked(proxy) as first, asked(proxy) as queued:
        await heartbeats(first)
        await heartbeats(queued)
        assert await proxy.metric("queue_requests") == 1
        cue.set()
        assert await rest(first) == ANSWER
        assert await rest(queued) == ANSWER


async def test_a_timeout_in_the_queue_after_a_heartbeat_is_an_event(fleet: Fleet) -> None:
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, *STREAM))
    engine.slots = 1
    proxy = await fleet.proxy(engine, **OFTEN, backend_queue_allowance=0, queue_timeout_seconds=1.5)
    async with asked(proxy) as first, asked(proxy) as queued:
        await heartbeats(first)
        await heartbeats(queued, 1)
        [error] = await rest(queued)
        assert read_event(error)[1]["error"]["code"] == "queue_timeout"
        cue.set()
        assert await rest(first) == ANSWER


async def test_queue_positions_are_heartbeats_enough(fleet: Fleet) -> None:
    """They come every second, so the client is never silent for longer."""
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, *STREAM))
    engine.slots = 1
    proxy = await fleet.proxy(engine, stream_heartbeat_seconds=2.5, backend_queue_allowance=0)
    async with asked(proxy) as first, asked(proxy, **{"x-queue-updates": "true"}) as queued:
        await heartbeats(first, 1)
        queued.send()
        assert await queued.head() == 200
        assert {await queued.event() for _ in range(4)} == {b": queued position=1\n\n"}
        engine.answer = when(asyncio.Event())  # of the request that leaves the queue
        cue.set()
        while (found := await queued.event()).startswith(b": queued"):
            pass
        assert found == HEARTBEAT


async def test_the_seam_of_a_resumed_stream_has_heartbeats(fleet: Fleet) -> None:
    """The second engine must read the prompt and the delivered text first."""
    cue, second = asyncio.Event(), asyncio.Event()
    begun = b"".join([STREAM_HEAD, *map(chunk, (event("one"), event(" two")))])
    breaking = await fleet.engine(breaks_when(cue, begun), owner="vllm")
    rest_of_it = [STREAM_HEAD, *map(chunk, (event(" three"), event("", "stop"), DONE)), LAST_CHUNK]
    other = await fleet.engine(when(second, *rest_of_it), owner="vllm", processing=5)
    proxy = await fleet.proxy(breaking, other, **OFTEN)
    async with asked(proxy) as call:
        call.send()
        assert await call.head() == 200
        assert [await call.event() for _ in range(2)] == [event("one"), event(" two")]
        cue.set()
        assert [await call.event() for _ in range(SEVERAL)] == [HEARTBEAT] * SEVERAL
        second.set()
        comment, *events = await rest(call)
        assert call.complete
    assert comment == b": resumed on another backend after backend_disconnected\n\n"
    assert events == [event(" three"), event("", "stop"), DONE]


async def test_a_client_that_leaves_between_heartbeats_frees_the_backend(fleet: Fleet) -> None:
    engine = await fleet.engine(when(asyncio.Event()))
    proxy = await fleet.proxy(engine, **OFTEN)
    async with asked(proxy) as call:
        await heartbeats(call)
        assert engine.open_requests == 1
        await call.leave()
        await eventually(lambda: not engine.open_requests)
    assert " 499 client_left " in await log_line(fleet)


async def test_heartbeats_are_not_the_first_byte(fleet: Fleet) -> None:
    cue = asyncio.Event()
    engine = await fleet.engine(when(cue, *STREAM))
    proxy = await fleet.proxy(engine, **OFTEN)
    async with asked(proxy) as call:
        await heartbeats(call, SEVERAL)
        cue.set()
        await rest(call)
    first_byte = float((await log_line(fleet)).partition("first_byte=")[2].split(" ")[0])
    assert first_byte >= SEVERAL * 0.1
