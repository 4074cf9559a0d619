from __future__ import annotations

from functools import partial

import pytest

from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.reply_tail import ReplyTail
from support.fakes.back import GET, connections_to
from support.fakes.engine import EngineConnection, FakeEngine
from support.fakes.front import until
from unit.wire.test_exchange import EVENTS, Connection, exchange_for


def listened_to() -> tuple[Exchange, Connection, ReplyTail]:
    exchange, connection = exchange_for()
    exchange.tail = tail = ReplyTail()
    return exchange, connection, tail


def chunk(number: int) -> bytes:
    event = b"data: %d\n\n" % number
    return b"%x\r\n%b\r\n" % (len(event), event)


def test_a_short_reply_is_kept_as_it_is() -> None:
    exchange, _, tail = listened_to()
    exchange.begin(200, b"", b"", 10)
    exchange.write(b"hello")
    exchange.write(b"world")
    assert tail.read() == b"helloworld"


def test_a_long_one_is_kept_at_both_ends_and_in_few_bytes() -> None:
    exchange, _, tail = listened_to()
    exchange.begin(200, b"", b"", 10_000_000)
    exchange.write(b"first" + b"x" * 60_000)
    for _ in range(100):
        exchange.write(b"y" * 60_000)
    exchange.write(b'z"usage"')
    kept = tail.read()
    assert kept.startswith(b"firstxxx")
    assert kept.endswith(b'yyyz"usage"')
    assert len(kept) < 70_000


def test_what_comes_in_one_long_piece_is_kept_once() -> None:
    tail = ReplyTail()
    tail.take(b"a" * 4096 + b"b" * 100)
    assert tail.read() == b"a" * 4096 + b"b" * 100


@pytest.mark.parametrize("flushes_first", [True, False])
def test_a_stream_is_written_through_all_the_same(flushes_first: bool) -> None:
    exchange, connection, tail = listened_to()
    exchange.begin(200, b"", EVENTS, None)
    if flushes_first:
        exchange.flush()
        assert exchange.write_through is None
    exchange.write_chunks(chunk(0))
    assert exchange.write_through is not None
    for number in range(1, 100):
        exchange.write_through(chunk(number))
    exchange.write_last_chunks(b"0\r\n\r\n")
    assert b"".join(connection.blocks).endswith(b"".join(map(chunk, range(100))) + b"0\r\n\r\n")
    assert tail.read() == chunk(0) + b"".join(map(chunk, range(85, 100))) + b"0\r\n\r\n"


def test_who_asks_for_nothing_has_the_client_written_to_directly() -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b"", EVENTS, None)
    exchange.flush()
    assert exchange.write_through == connection.write


def test_a_client_that_takes_no_chunks_is_not_written_through() -> None:
    exchange, connection = exchange_for(b"GET /x HTTP/1.0")
    exchange.tail = ReplyTail()
    exchange.begin(200, b"", EVENTS, None)
    exchange.write(b"data: 1\n\n")
    assert exchange.write_through is None
    assert exchange.tail.read() == b"data: 1\n\n"
    assert connection.blocks[-1].endswith(b"data: 1\n\n")


async def test_what_a_backend_streams_is_kept_as_it_passes() -> None:
    exchange, connection, tail = listened_to()

    def passed(number: int) -> bool:
        return bool(connection.blocks) and connection.blocks[-1].endswith(chunk(number))

    async def token_by_token(engine: EngineConnection) -> None:
        await engine.request()
        engine.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(40):
            engine.send(chunk(number))
            await until(partial(passed, number))
        engine.send(b"0\r\n\r\n")

    async with FakeEngine(token_by_token) as engine, connections_to(engine.url) as connections:
        backend = await connections.connect()
        await backend.request([GET], exchange, is_head=False)
        connections.release(backend)
    assert len(connection.blocks) >= 41
    assert tail.read() == chunk(0) + b"".join(map(chunk, range(25, 40))) + b"0\r\n\r\n"
    assert exchange.sent_bytes == sum(map(len, connection.blocks))
