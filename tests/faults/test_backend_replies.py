"""Replies that end early, come late, never end, or are unusual but valid."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from faults.conftest import CHAT, OTHER
from inference_engine_proxy_server.wire.framing import ChunkedBody
from support.engine import EVENT, STREAM_HEAD, Answer, Engine, answers_with, chunk, hangs
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet
from support.http_client import Reply
from support.waiting import eventually

SIZED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
UNSIZED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"


def then_dies(*blocks: bytes, by_reset: bool = False) -> Answer:
    """Closes the connection after these bytes."""

    async def answer(connection: EngineConnection) -> None:
        connection.send(*blocks)
        if by_reset:
            await asyncio.sleep(0.05)  # so that the bytes are not lost when the connection closes
            connection.reset()
        else:
            connection.finish()
        raise ConnectionError("it is gone")

    return answer


async def check_broken(fleet: Fleet, engine: Engine, reply: Reply) -> None:
    """Check that an unfinished reply is visible to client and operator and was not retried."""
    assert fleet.last_proxy is not None
    assert (reply.status, reply.complete) == (200, False)
    assert b"[DONE]" not in reply.body
    assert len(engine.served) == 1
    assert await fleet.last_proxy.metric("stream_aborts_total", side="backend") == 1
    assert await fleet.last_proxy.metric("retries_total") == 0
    assert await fleet.last_proxy.metric("requests_total", backend=engine.url, code="200") == 1
    await eventually(lambda: f"200 broken backend={engine.url}" in fleet.access_log.getvalue())


@pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("head", [SIZED_HEAD, STREAM_HEAD], ids=["of known length", "stream"])
async def test_bf10_reply_cut_after_its_head_is_not_an_empty_success(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, head: bytes, by_reset: bool
) -> None:
    dying, other = await fleet.engine(then_dies(head, by_reset=by_reset)), await fleet.engine(processing=5)
    proxy = await fleet.proxy(dying, other)

    reply = await proxy.post()

    await check_broken(fleet, dying, reply)
    if head is STREAM_HEAD:
        assert json.loads(reply.body.removeprefix(b"data: "))["error"]["code"] == "backend_disconnected"
    else:
        assert reply.body == b""
    assert not other.served
    assert f"backend {dying.url} is down: it broke a connection" in caplog.text
    await proxy.becomes(dying, "up")  # it was polled at once and answered


async def test_bf10_reset_of_a_reply_without_length_resets_the_client(fleet: Fleet) -> None:
    engine = await fleet.engine(then_dies(UNSIZED_HEAD, b"half", by_reset=True))
    proxy = await fleet.proxy(engine)
    await check_broken(fleet, engine, await proxy.post())


@pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "RST"])
async def test_bf14_body_shorter_than_its_length_is_cut_off(fleet: Fleet, by_reset: bool) -> None:
    engine = await fleet.engine(then_dies(SIZED_HEAD, b"short", by_reset=by_reset))
    proxy = await fleet.proxy(engine)
    await check_broken(fleet, engine, await proxy.post())


async def test_bf21_endless_head_is_504_without_a_retry(fleet: Fleet) -> None:
    async def drips(connection: EngineConnection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\n")
        while not connection.ended.done():
            connection.send(b"x: 1\r\n")
            await asyncio.sleep(0.02)
        raise ConnectionError("it is gone")

    dripping, other = await fleet.engine(drips), await fleet.engine(processing=5)
    proxy = await fleet.proxy(dripping, other, backend_first_byte_timeout_seconds=0.5)
    reply = await proxy.post()
    assert (reply.status, reply.json["error"]["code"]) == (504, "backend_timeout")
    assert reply.headers["x-should-retry"] == "false"
    assert not other.served
    await eventually(lambda: not dripping.open_requests)


async def test_bf21_endless_interim_replies_are_502_and_none_reaches_the_client(fleet: Fleet) -> None:
    async def sends_interim_replies_only(connection: EngineConnection) -> None:
        while not connection.ended.done():
            connection.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
            await asyncio.sleep(0.002)
        raise ConnectionError("it is gone")

    engine, other = await fleet.engine(sends_interim_replies_only), await fleet.engine(processing=5)
    proxy = await fleet.proxy(engine, other)
    reply = await proxy.post()  # its first reply is final
    assert (reply.status, reply.json["error"]["code"]) == (502, "invalid_backend_reply")
    assert "link" not in reply.headers
    assert not other.served


def refuses_to_read(reply: bytes) -> Answer:
    """Sends ``reply`` (possibly empty) and reads nothing more from the connection until the peer closes it."""

    async def answer(connection: EngineConnection) -> None:
        connection.stop_reading()
        connection.send(reply)
        await connection.cue.wait()
        connection.go_on_reading()
        await connection.ended
        raise ConnectionError("it is gone")

    return answer


class HeadReadingEngine(Engine):
    """Answers as soon as it has the head of a request, before its body."""

    async def _serve(self, connection: EngineConnection) -> None:
        await connection.first_bytes()
        if connection.received.startswith(b"GET "):
            await super()._serve(connection)
        self.served.append(bytes(connection.received))
        self._serving.add(connection)
        await self.answer(connection)


async def test_bf24_early_reply_is_relayed_and_ends_the_upload(fleet: Fleet) -> None:
    early = await fleet.add(HeadReadingEngine(refuses_to_read(http_reply(b"too long", 413)), owner="vllm"))
    proxy = await fleet.proxy(early)
    body = bytes(20_000_000)

    reply = await proxy.post("/v1/audio/transcriptions", body)

    assert (reply.status, reply.body, reply.complete) == (413, b"too long", True)
    connection = connection_of_request(early)
    connection.cue.set()
    await connection.ended
    assert len(connection.received) < len(body)
    assert await proxy.state(early) == "up"
    early.answer = answers_with(http_reply())
    assert (await proxy.post()).status == 200


async def test_bf25_backend_that_does_not_read_the_body_is_504_and_memory_is_released(fleet: Fleet) -> None:
    slow, other = await fleet.add(HeadReadingEngine(refuses_to_read(b""))), await fleet.engine(processing=5)
    slow.slots = 1
    limits = {"backend_first_byte_timeout_seconds": 0.6, "backend_queue_allowance": 0}
    proxy = await fleet.proxy(slow, other, **limits)
    body = bytes(20_000_000)
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(proxy.post(CHAT, body))
        await eventually(lambda: bool(slow.served))
        assert await proxy.metric("request_body_bytes_in_flight") == len(body)
        assert (await proxy.post()).headers["x-backend"] == other.url
    reply = asking.result()
    assert (reply.status, reply.json["error"]["code"]) == (504, "backend_timeout")
    connection_of_request(slow).cue.set()
    await connection_of_request(slow).ended
    assert await proxy.metric("request_body_bytes_in_flight") == 0
    assert await proxy.metric("retries_total") == 0


async def test_bf36_long_prefill_is_waited_for(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """While its progress counter moves, the backend is not suspected and its request is not moved."""

    async def reads_a_long_prompt(connection: EngineConnection) -> None:
        for _ in range(30):
            await asyncio.sleep(0.05)
            engine.decoded += 1
        connection.send(STREAM_HEAD, chunk(EVENT), b"0\r\n\r\n")

    engine, other = await fleet.engine(reads_a_long_prompt), await fleet.engine(processing=5)
    proxy = await fleet.proxy(engine, other, refresh_seconds=0.1, suspect_after_seconds=0.5)
    reply = await proxy.post()
    assert (reply.status, reply.body, reply.headers["x-backend"]) == (200, EVENT, engine.url)
    assert "suspect" not in caplog.text
    assert not other.served
    assert await proxy.metric("retries_total") == 0


@pytest.mark.parametrize("path", [CHAT, OTHER])
async def test_bf37_stalled_stream_ends_with_an_error_and_frees_its_slot(fleet: Fleet, path: str) -> None:
    async def stands_still(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(EVENT), chunk(EVENT))
        await hangs(connection)

    engine, other = await fleet.engine(stands_still), await fleet.engine(processing=5)
    proxy = await fleet.proxy(engine, other, backend_stream_idle_timeout_seconds=0.4)
    reply = await proxy.post(path)
    await check_broken(fleet, engine, reply)
    assert reply.body.startswith(EVENT * 2)
    last = reply.body.removeprefix(EVENT * 2)
    assert last.startswith(b"event: response.failed\n" if path == OTHER else b'data: {"error": ')
    assert b"The backend stopped in the middle of its reply." in last
    assert not other.served
    await eventually(lambda: not engine.open_requests)


async def test_bf38_compressed_reply_is_relayed_unchanged(fleet: Fleet) -> None:
    packed = gzip.compress(b'{"ok": true}')
    engine = await fleet.engine(
        answers_with(http_reply(packed, fields=b"Content-Encoding: gzip\r\nVary: accept-encoding\r\n"))
    )
    proxy = await fleet.proxy(engine)
    reply = await proxy.post(**{"Accept-Encoding": "gzip;q=0.5, br"})
    assert (reply.body, reply.headers["content-encoding"]) == (packed, "gzip")
    assert (reply.headers["content-length"], reply.headers["vary"]) == (str(len(packed)), "accept-encoding")
    assert b"\r\nAccept-Encoding: gzip;q=0.5, br\r\n" in engine.served[0]


async def test_bf39_event_of_5_mib_is_relayed_as_it_is_generated(fleet: Fleet) -> None:
    line = b"data: " + bytes(range(48, 58)) * 524_288

    async def sends_an_event_in_two_parts(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(line[:1000]))
        await connection.cue.wait()  # the client has received the beginning
        for start in range(1000, len(line), 70_000):
            connection.send(chunk(line[start : start + 70_000]))
        connection.send(chunk(b"\n\n"), b"0\r\n\r\n")

    engine = await fleet.engine(sends_an_event_in_two_parts)
    proxy = await fleet.proxy(engine)
    reader, writer = await proxy.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
    async with asyncio.timeout(20):
        await reader.readuntil(b"\r\n\r\n")
        received = await reader.readexactly(len(chunk(line[:1000])))
        connection_of_request(engine).cue.set()
        received += await reader.read()
    body = ChunkedBody()
    assert b"".join(body.feed(received)) == line + b"\n\n"
    assert body.complete


def connection_of_request(engine: Engine) -> EngineConnection:
    """The one connection of ``engine`` that carried a client's request."""
    [connection] = [one for one in engine.connections if one.received.startswith(b"POST ")]
    return connection


async def test_bf41_tiny_chunks_stay_in_order_and_none_waits_for_the_next(fleet: Fleet) -> None:
    events = [b'data: {"n": %d}\n\n' % number for number in range(10_000)]

    async def sends_them(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD)
        for event in events[:200]:
            connection.send(chunk(event))
            await connection.cue.wait()  # the client has read the chunk
            connection.cue.clear()
        for event in events[200:]:
            connection.send(chunk(event))
        connection.send(b"0\r\n\r\n")

    engine = await fleet.engine(sends_them)
    proxy = await fleet.proxy(engine)
    async with proxy.call() as call:
        call.send()
        await call.head()
        connection = connection_of_request(engine)
        for event in events[:200]:
            assert await call.event() == event
            connection.cue.set()
        reply = await call.reply()
    assert reply.body == b"".join(events[200:])
    assert reply.complete


@pytest.mark.parametrize("path", [CHAT, "/health-of-another"])
async def test_bf43_redirect_goes_to_the_client_and_nowhere_else(fleet: Fleet, path: str) -> None:
    other = await fleet.engine()
    location = f"{other.url}/v1/chat/completions"
    engine = await fleet.engine(answers_with(http_reply(b"", 307, f"Location: {location}\r\n".encode())))
    engine.health = answers_with(http_reply(b"", 307, f"Location: {other.url}/health\r\n".encode()))
    proxy = await fleet.proxy(engine, refresh_seconds=0.1)
    await proxy.becomes(engine, "down")  # a redirect is not a healthy page
    engine.health = answers_with(http_reply())
    await proxy.becomes(engine, "up")
    reply = await proxy.post(path)
    assert (reply.status, reply.headers["location"]) == (307, location)
    assert not other.connections
