from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from inference_engine_proxy_server.errors import BackendBroke, BackendTimeout, InvalidReply
from inference_engine_proxy_server.wire.backend_connections import Activity
from support.fakes.back import GET, LIMITS, Sink, ask, connections_to
from support.fakes.engine import EngineConnection, FakeEngine, Script, answering, http_reply
from support.fakes.front import until

IMPATIENT = replace(LIMITS, first_byte_seconds=0.15, pause_seconds=0.15)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def then_closes(*blocks: bytes) -> Script:
    """Answers one request, and closes the connection."""

    async def script(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(*blocks)
        connection.finish()

    return script


def then_resets(block: bytes) -> Script:
    """Answers one request, waits for its cue, and resets the connection; an early RST would overtake unread bytes."""

    async def script(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(block)
        await connection.cue.wait()
        connection.reset()

    return script


REPLIES = {
    "length": (http_reply(b"hello", fields=b"X: 1\r\n"), b"hello", 5),
    "empty": (http_reply(b""), b"", 0),
    "chunked": (CHUNKED + b"2\r\nhe\r\n3;x\r\nllo\r\n0\r\nT: 1\r\n\r\n", b"hello", None),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", None),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", 9),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + http_reply(),
        b"hello",
        5,
    ),
    "ten-interims": (b"HTTP/1.1 102 P\r\n\r\n" * 10 + http_reply(), b"hello", 5),
}


@pytest.mark.parametrize(("reply", "body", "length"), REPLIES.values(), ids=REPLIES)
async def test_a_reply_is_relayed_and_its_connection_reused(reply: bytes, body: bytes, length: int | None) -> None:
    async with FakeEngine(answering(reply)) as engine, connections_to(engine.url) as connections:
        for _ in range(2):
            sink = await ask(connections)
            assert (sink.body, sink.content_length, sink.ended) == (body, length, 1)
        assert engine.requests == [GET, GET]
        assert len(engine.connections) == 1


@pytest.mark.parametrize(("reply", "body", "length"), REPLIES.values(), ids=REPLIES)
async def test_a_reply_is_the_same_split_at_any_byte(reply: bytes, body: bytes, length: int | None) -> None:
    async def bytewise(connection: EngineConnection) -> None:
        while True:
            await connection.request()
            for start in range(len(reply)):
                connection.send(reply[start : start + 1])
                await asyncio.sleep(0)

    async with FakeEngine(bytewise) as engine, connections_to(engine.url) as connections:
        for takes_chunks in (False, True):
            sink = await ask(connections, sink=Sink(takes_chunks=takes_chunks))
            assert (sink.body, sink.content_length, sink.ended) == (body, length, 1)
        assert len(engine.connections) == 1


STREAMED = b"6\r\nhello,\r\n3\r\n wo\r\n3\r\nrld\r\n0\r\n\r\n"


async def test_status_reason_and_fields_are_relayed() -> None:
    reply = b"HTTP/1.1 418 I'm a teapot\r\nX-One: 1\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n"
    async with FakeEngine(answering(reply)) as engine, connections_to(engine.url) as connections:
        sink = await ask(connections)
        assert (sink.status, sink.reason, sink.fields) == (418, b" I'm a teapot", b"X-One: 1\r\n")


async def test_whole_chunks_are_relayed_unchanged() -> None:
    block = b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    async with FakeEngine(answering(CHUNKED + block)) as engine, connections_to(engine.url) as connections:
        sink = await ask(connections, sink=Sink(takes_chunks=True))
        assert (sink.blocks, sink.chunks_complete, sink.pieces, sink.ended) == ([block], True, [], 1)


async def test_chunks_that_arrive_together_are_relayed_together_to_a_sink_that_takes_no_chunks() -> None:
    async with (
        FakeEngine(answering(CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")) as engine,
        connections_to(engine.url) as connections,
    ):
        sink = await ask(connections, sink=Sink(takes_chunks=False))
        assert (sink.pieces, sink.ended) == ([b"hello"], 1)


@pytest.mark.parametrize("cut", range(1, len(STREAMED)))
async def test_chunks_relayed_unchanged_make_the_same_body_split_at_any_byte(cut: int) -> None:
    async def in_two_blocks(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(CHUNKED)
        await until(lambda: sink.flushed)
        connection.send(STREAMED[:cut])
        await until(lambda: sink.sent_bytes or cut <= len(b"6\r\n"))  # nothing is forwarded for a size line alone
        connection.send(STREAMED[cut:])

    sink = Sink(takes_chunks=True)
    async with FakeEngine(in_two_blocks) as engine, connections_to(engine.url) as connections:
        await ask(connections, sink=sink)
        assert (sink.payload, sink.ended) == (b"hello, world", 1)


async def test_payload_that_looks_like_a_chunk_is_payload() -> None:
    inner = b"5\r\nhello\r\n"

    async def in_three_blocks(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(CHUNKED, b"d\r\n:")
        await until(lambda: sink.payload)
        connection.send(inner)
        await until(lambda: len(sink.payload) > 1)
        connection.send(b"::\r\n0\r\n\r\n")

    sink = Sink(takes_chunks=True)
    async with FakeEngine(in_three_blocks) as engine, connections_to(engine.url) as connections:
        await ask(connections, sink=sink)
        assert sink.payload == b":" + inner + b"::"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"5\r\nhelloXX", id="no line end after it"),
        pytest.param(b"0x5\r\nhello\r\n", id="a size that only int() would read"),
        pytest.param(b"+5\r\nhello\r\n", id="a sign"),
        pytest.param(b" 5\r\nhello\r\n", id="a blank"),
        pytest.param(b"5\nhello\r\n", id="a bare line feed"),
    ],
)
async def test_a_block_that_only_looks_like_a_chunk_is_not_relayed_unchanged(block: bytes) -> None:
    async def head_first(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(CHUNKED)
        await until(lambda: sink.flushed)
        connection.send(block)

    sink = Sink(takes_chunks=True)
    async with FakeEngine(head_first) as engine, connections_to(engine.url) as connections:
        with pytest.raises(InvalidReply):
            await ask(connections, sink=sink)
    assert sink.blocks == []


async def test_a_reply_to_head_has_no_body_whatever_it_announces() -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    async with FakeEngine(answering(reply, CHUNKED)) as engine, connections_to(engine.url) as connections:
        assert (await ask(connections, is_head=True)).content_length == 100
        assert (await ask(connections, is_head=True)).ended == 1
        assert len(engine.connections) == 1


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_a_body_that_ends_with_the_connection_is_complete_then(version: bytes) -> None:
    script = then_closes(version + b" 200 OK\r\n\r\nhello")
    async with FakeEngine(script) as engine, connections_to(engine.url) as connections:  # BF16
        assert (await ask(connections)).body == b"hello"
        assert connections.take_idle() is None


async def test_a_head_is_forwarded_before_its_body_arrives() -> None:
    release = asyncio.Event()

    async def pauses(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(CHUNKED)
        await release.wait()
        connection.send(b"0\r\n\r\n")

    async with FakeEngine(pauses) as engine, connections_to(engine.url) as connections:
        sink = Sink()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(ask(connections, sink=sink))
            await until(lambda: sink.flushed)
            assert (sink.status, asking.done()) == (200, False)
            release.set()


NOT_REUSED = {
    "close": http_reply(fields=b"Connection: close\r\n"),
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "BF19-1.0-chunked": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0\r\n\r\n",
    "excess": http_reply() + b"HTTP/1.1 200 OK\r\n",
    "excess-after-chunks": CHUNKED + b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1",
}


@pytest.mark.parametrize("reply", NOT_REUSED.values(), ids=NOT_REUSED)
async def test_a_connection_in_doubtful_state_is_not_reused(reply: bytes) -> None:
    async with FakeEngine(answering(reply)) as engine, connections_to(engine.url) as connections:
        for _ in range(2):
            assert (await ask(connections)).body == b"hello"
        assert len(engine.connections) == 2
        await engine.connections[0].ended


async def test_an_early_reply_is_relayed_and_ends_the_upload() -> None:
    async def refuses(connection: EngineConnection) -> None:
        await connection.first_bytes()
        connection.stop_reading()
        connection.send(http_reply(b"too long", status=413))

    upload = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 50000000\r\n\r\n" + bytes(50_000_000)
    async with FakeEngine(refuses) as engine, connections_to(engine.url) as connections:  # BF24
        sink = await ask(connections, upload)
        assert (sink.status, sink.body) == (413, b"too long")
        assert connections.take_idle() is None
        engine.connections[0].go_on_reading()
        await engine.connections[0].ended
        assert len(engine.connections[0].received) < len(upload)


BAD = {
    "BF19-chunked-twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    "BF19-gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "BF19-length-and-chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "BF20-long-head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000,
    "BF20-long-whole-head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "BF20-many-fields": b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 201 + b"\r\n",
    "BF20-no-colon": b"HTTP/1.1 200 OK\r\nX\r\n\r\n",
    "BF20-nul": b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
    "BF20-bare-line-feeds": b"HTTP/1.1 200 OK\n\n",
    "BF20-folded-line": b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n",
    "BF21-eleven-interims": b"HTTP/1.1 100 Continue\r\n\r\n" * 11 + http_reply(),
    "BF42-ssh": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "switching-protocols": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "chunk-too-long": CHUNKED + b"5\r\nhelloX",
    "chunk-size": CHUNKED + b"0x5\r\nhello\r\n",
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD)
async def test_an_invalid_reply_is_refused_and_its_connection_closed(reply: bytes) -> None:
    async with FakeEngine(answering(reply)) as engine, connections_to(engine.url) as connections:
        sink = Sink()
        with pytest.raises(InvalidReply):
            await ask(connections, sink=sink)
        await engine.connections[0].ended
        assert (sink.ended, connections.take_idle()) == (0, None)


async def test_interim_replies_are_counted_however_they_are_split() -> None:
    async def for_ever(connection: EngineConnection) -> None:
        await connection.request()
        while not connection.ended.done():
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.001)

    async with FakeEngine(for_ever) as engine, connections_to(engine.url) as connections:
        with pytest.raises(InvalidReply):
            await ask(connections)


BREAKS = {
    "before-the-reply": (then_closes(), 0),
    "before-the-reply-by-reset": (then_resets(b""), 0),
    "in-its-head": (then_closes(b"HTTP/1.1 200 OK\r\nX:"), 0),
    "BF10-after-its-head": (then_closes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), 200),
    "BF14-in-its-body": (then_closes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"), 200),
    "BF13-before-the-last-chunk": (then_closes(CHUNKED + b"5\r\nhello\r\n"), 200),
    "in-a-chunk": (then_resets(CHUNKED + b"9\r\nhello"), 200),
    "in-a-body-that-ends-with-the-connection": (then_resets(b"HTTP/1.1 200 OK\r\n\r\nhello"), 200),
}


@pytest.mark.parametrize(("script", "status"), BREAKS.values(), ids=BREAKS)
async def test_a_reply_that_ends_early_is_broken(script: Script, status: int) -> None:
    async with FakeEngine(script) as engine, connections_to(engine.url) as connections:
        sink = Sink()
        asking = asyncio.get_running_loop().create_task(ask(connections, sink=sink))
        await until(lambda: engine.requests and sink.status == status)
        engine.connections[0].cue.set()
        with pytest.raises(BackendBroke) as broken:
            await asking
        assert (sink.status, sink.ended) == (status, 0)
        assert not broken.value.crossed_request


async def drips(connection: EngineConnection) -> None:
    await connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\nX: ")
    while not connection.ended.done():
        connection.send(b"a")
        await asyncio.sleep(0.005)


async def drips_interims(connection: EngineConnection) -> None:
    await connection.request()
    for _ in range(10):
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.04)


async def stalls(connection: EngineConnection) -> None:
    await connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")


async def sends_nothing(connection: EngineConnection) -> None:
    await connection.request()


@pytest.mark.parametrize("script", [sends_nothing, drips, drips_interims, stalls])
async def test_a_backend_that_misses_a_deadline_is_abandoned(script: Script) -> None:
    async with FakeEngine(script) as engine, connections_to(engine.url, IMPATIENT) as connections:  # BF03, BF21, BF37
        sink = Sink()
        with pytest.raises(BackendTimeout):
            await ask(connections, sink=sink)
        assert sink.ended == 0
        await engine.connections[0].ended


async def test_a_slow_reply_is_not_late_while_it_makes_progress() -> None:
    async def slowly(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n")
        for _ in range(30):
            await asyncio.sleep(0.02)
            connection.send(b"a")

    patience = replace(LIMITS, first_byte_seconds=0.4, pause_seconds=0.4)
    async with FakeEngine(slowly) as engine, connections_to(engine.url, patience) as connections:
        assert (await ask(connections)).body == b"a" * 30


async def test_a_backend_is_not_late_while_its_client_is_behind() -> None:
    async with FakeEngine(stalls) as engine, connections_to(engine.url, IMPATIENT) as connections:
        connection = await connections.connect()
        sink = Sink()
        result = connection.request([GET], sink, is_head=False)
        await until(lambda: sink.pieces)
        assert sink.source is connection
        connection.pause_reading()
        await asyncio.sleep(0.3)  # twice the allowed time
        assert not result.done()
        connection.resume_reading()
        with pytest.raises(BackendTimeout):
            await result
        connection.pause_reading()  # the client's side may still do so
        connection.resume_reading()
        connections.release(connection)


async def test_a_paused_sink_stops_reading_and_loses_nothing() -> None:
    size = 64_000_000
    piece = bytes(range(256)) * 1000

    async def sends_much(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            connection.send(piece)
            await until(lambda: not connection.unsent_bytes)

    async with FakeEngine(sends_much) as engine, connections_to(engine.url) as connections:
        connection = await connections.connect()
        sink = Sink()
        received = after_pause = 0
        paused = False

        def take(block: bytes) -> None:
            nonlocal received, after_pause, paused
            start = received % 256
            assert block == (bytes(range(256)) * (len(block) // 256 + 2))[start : start + len(block)]
            received += len(block)
            after_pause += len(block) * paused
            if received > size // 2 and not resumed.is_set():
                connection.pause_reading()
                paused = True

        resumed = asyncio.Event()
        sink.on_piece = take
        result = connection.request([GET], sink, is_head=False)
        await until(lambda: paused and engine.connections[0].unsent_bytes)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert after_pause == 0
        resumed.set()
        paused = False
        connection.resume_reading()
        await result
        assert received == size
        connections.release(connection)


async def greets(connection: EngineConnection) -> None:
    connection.send(b"SSH-2.0-OpenSSH_9.2\r\n")


async def closes_at_once(connection: EngineConnection) -> None:
    connection.finish()


async def resets_at_once(connection: EngineConnection) -> None:
    connection.reset()


@pytest.mark.parametrize(
    ("script", "error"), [(greets, InvalidReply), (closes_at_once, BackendBroke), (resets_at_once, BackendBroke)]
)
async def test_a_request_on_a_connection_that_has_ended_fails_at_once(script: Script, error: type[Exception]) -> None:
    async with FakeEngine(script) as engine, connections_to(engine.url) as connections:
        connection = await connections.connect()
        await until(connection.is_stale)
        await asyncio.sleep(0.01)  # the event loop reads what the system call has seen
        with pytest.raises(error):
            async with asyncio.timeout(5):
                await connection.request([GET], Sink(), is_head=False)
        connections.release(connection)


async def test_a_connection_paused_at_the_end_of_a_reply_reads_the_next_one() -> None:
    async with FakeEngine(answering(http_reply())) as engine, connections_to(engine.url) as connections:
        sink = Sink()
        connection = await connections.connect()
        sink.on_piece = lambda _: connection.pause_reading()
        await connection.request([GET], sink, is_head=False)
        connections.release(connection)
        assert (await ask(connections)).body == b"hello"
        assert len(engine.connections) == 1


async def test_a_cancelled_request_closes_its_connection_at_once() -> None:
    async with FakeEngine(stalls) as engine, connections_to(engine.url) as connections:
        sink = Sink()
        task = asyncio.get_running_loop().create_task(ask(connections, sink=sink))
        await until(lambda: sink.pieces)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(1):
            await engine.connections[0].ended
        assert connections.take_idle() is None


async def test_the_time_of_the_last_byte_stays_known_after_the_reply() -> None:
    async with FakeEngine(answering(http_reply())) as engine, connections_to(engine.url) as connections:
        before = asyncio.get_running_loop().time()
        assert connections.activity() == Activity(last_byte_at=0.0, waiting_since=None)
        await ask(connections)
        assert connections.activity().last_byte_at >= before
        assert connections.activity().waiting_since is None
