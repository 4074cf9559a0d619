from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from inference_engine_proxy_server.errors import BackendBroke
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_excerpt import ReplyExcerpt
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver
from support.fakes.back import GET, connections_to
from support.fakes.engine import EngineConnection, FakeEngine
from support.fakes.front import until
from unit.wire.test_exchange import EVENTS, Connection, exchange_for

LAST_CHUNK = b"0\r\n\r\n"


class Recorder(ReplyObserver):
    """Records its calls."""

    def __init__(self, *, wants_blocks: bool = True) -> None:
        self.wants_blocks = wants_blocks
        self.calls: list[tuple[str, object]] = []

    def begin(self, block: bytes) -> None:
        self.calls.append(("begin", block))

    def take(self, block: bytes) -> None:
        self.calls.append(("take", block))

    def end(self, outcome: Outcome) -> None:
        self.calls.append(("end", outcome))

    def blocks(self) -> list[object]:
        return [block for call, block in self.calls if call == "take"]


def observed(*observers: ReplyObserver) -> tuple[Exchange, Connection]:
    exchange, connection = exchange_for()
    for observer in observers:
        exchange.observers.add(observer)
    return exchange, connection


def excerpted() -> tuple[Exchange, Connection, ReplyExcerpt]:
    exchange, connection = exchange_for()
    return exchange, connection, exchange.observers.excerpt()


def chunk(number: int) -> bytes:
    event = b"data: %d\n\n" % number
    return b"%x\r\n%b\r\n" % (len(event), event)


def stream(exchange: Exchange, count: int) -> None:
    """Send ``count`` chunks as a backend's connection does: directly as soon as that is possible."""
    exchange.begin(200, b"", EVENTS, None)
    for number in range(count):
        direct = exchange.pass_through
        if direct is None:
            exchange.write_chunks(chunk(number))
        else:
            direct.write_through(chunk(number))
    exchange.write_last_chunks(LAST_CHUNK)
    exchange.end()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_observer_sees_every_block_of_a_stream(count: int) -> None:
    observers = [Recorder(wants_blocks=bool(number % 2)) for number in range(count)]
    all_blocks = [*map(chunk, range(20)), LAST_CHUNK]
    exchange, connection = observed(*observers)
    stream(exchange, 20)
    assert b"".join(connection.blocks).endswith(b"".join(all_blocks))
    for observer in observers:
        assert observer.calls[0] == ("begin", chunk(0))
        assert observer.calls[-1] == ("end", Outcome.COMPLETE)
        assert observer.blocks() == (all_blocks if observer.wants_blocks else [])


def test_a_whole_reply_is_one_block() -> None:
    recorder = Recorder()
    exchange, _ = observed(recorder)
    exchange.respond(200, b"", b"hello")
    assert recorder.calls == [("begin", b"hello"), ("take", b"hello"), ("end", Outcome.COMPLETE)]


@pytest.mark.parametrize("outcome", [Outcome.BROKEN, Outcome.CLIENT_LEFT])
def test_an_unfinished_reply_ends_once_with_its_outcome(outcome: Outcome) -> None:
    recorder = Recorder()
    exchange, _ = observed(recorder)
    exchange.begin(200, b"", b"", None)
    exchange.write(b"a")
    if outcome is Outcome.CLIENT_LEFT:
        exchange.client_left()
    exchange.fail(BackendBroke("Gone."))
    assert [call for call in recorder.calls if call[0] == "end"] == [("end", outcome)]


def test_an_observer_of_a_failed_attempt_sees_nothing_of_the_next_one() -> None:
    failed, stays = Recorder(), Recorder()
    exchange, _ = observed(stays, failed)
    exchange.observers.remove(failed)
    stream(exchange, 2)
    assert failed.calls == []
    assert stays.blocks() == [chunk(0), chunk(1), LAST_CHUNK]


def test_observers_see_the_reply_and_not_the_comments_ahead_of_it() -> None:
    early, late = Recorder(), Recorder()
    exchange, _ = observed(early)
    exchange.send_comment(b": queued\n\n")
    exchange.observers.add(late)
    exchange.write_chunks(chunk(0))
    assert late.calls == [("begin", chunk(0)), ("take", chunk(0))]
    assert early.calls == late.calls


@pytest.mark.parametrize("observers", [(), (Recorder(wants_blocks=False),)], ids=["none", "one-without-blocks"])
def test_a_stream_takes_the_direct_path_unless_an_observer_wants_blocks(observers: tuple[ReplyObserver, ...]) -> None:
    exchange, connection = observed(*observers)
    exchange.begin(200, b"", EVENTS, None)
    exchange.flush()
    exchange.write_chunks(chunk(0))
    assert exchange.pass_through is exchange
    assert exchange.write_through == connection.write


def test_a_client_that_takes_no_chunks_has_no_direct_path() -> None:
    exchange, connection = exchange_for(b"GET /x HTTP/1.0")
    excerpt = exchange.observers.excerpt()
    exchange.begin(200, b"", EVENTS, None)
    exchange.write(b"data: 1\n\n")
    assert exchange.pass_through is None
    assert excerpt.read() == b"data: 1\n\n"
    assert connection.blocks[-1].endswith(b"data: 1\n\n")


# --- the excerpt


def test_all_observers_share_one_excerpt() -> None:
    exchange, _, excerpt = excerpted()
    assert exchange.observers.excerpt() is excerpt


def test_a_short_reply_is_kept_whole() -> None:
    exchange, _, excerpt = excerpted()
    exchange.begin(200, b"", b"", 10)
    exchange.write(b"hello")
    exchange.write(b"world")
    assert excerpt.read() == b"helloworld"


def test_a_long_reply_is_kept_at_both_ends_within_a_bound() -> None:
    exchange, _, excerpt = excerpted()
    exchange.begin(200, b"", b"", 10_000_000)
    exchange.write(b"first" + b"x" * 60_000)
    for _ in range(100):
        exchange.write(b"y" * 60_000)
    exchange.write(b'z"usage"')
    kept = excerpt.read()
    assert kept.startswith(b"firstxxx")
    assert kept.endswith(b'yyyz"usage"')
    assert len(kept) < 140_000


@pytest.mark.parametrize("size", [1, 100, 4000, 60_000, 10**6])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_reports_in_the_middle_of_a_long_reply_are_kept(size: int, version: str) -> None:
    exchange, _ = exchange_for(b"POST /x HTTP/" + version.encode())
    excerpt = exchange.observers.excerpt()
    report = b'"usage": {"prompt_tokens": 7, "details": {"more": {}}}'
    body = b"{" + b"x" * 100_000 + report + b"y" * 100_000
    exchange.begin(200, b"", b"", None)
    for start in range(0, len(body), size):
        exchange.write(body[start : start + size])
    assert report in excerpt.read()


def test_the_first_report_and_the_last_ones_are_kept() -> None:
    exchange, _, excerpt = excerpted()
    exchange.begin(200, b"", EVENTS, None)
    for number in range(5000):
        exchange.write(b'data: {"usage":{"output_tokens":%d}}\n\n' % number)
    for _ in range(5000):
        exchange.write(b'data: {"choices":[]}\n\n')
    kept = excerpt.read()
    assert kept.index(b'"output_tokens":0}') < kept.index(b'"output_tokens":4999}')
    assert kept.count(b"output_tokens") < 200


@pytest.mark.parametrize("count", [0, 1, 100, 10_000])
def test_all_events_are_counted(count: int) -> None:
    exchange, _, excerpt = excerpted()
    exchange.begin(200, b"", EVENTS, None)
    for number in range(count):
        exchange.write(b': ping\n\ndata: {"n":%d}\n\n' % number)
    exchange.write(b"data: [DONE]\n\n")
    assert excerpt.events() == count


@pytest.mark.parametrize("flushes_first", [True, False])
def test_an_excerpt_of_a_stream_has_no_chunk_framing(flushes_first: bool) -> None:
    exchange, connection, excerpt = excerpted()
    exchange.begin(200, b"", EVENTS, None)
    if flushes_first:
        exchange.flush()
        assert exchange.pass_through is None
    exchange.write_chunks(chunk(0))
    assert exchange.pass_through is not None
    for number in range(1, 100):
        exchange.write_through(chunk(number))
    exchange.write_last_chunks(LAST_CHUNK)
    assert b"".join(connection.blocks).endswith(b"".join(map(chunk, range(100))) + LAST_CHUNK)
    assert excerpt.read() == b"".join(b"data: %d\n\n" % number for number in range(100))


async def test_an_excerpt_is_taken_of_a_stream_relayed_from_a_backend() -> None:
    exchange, connection, excerpt = excerpted()

    def passed(number: int) -> bool:
        return bool(connection.blocks) and connection.blocks[-1].endswith(chunk(number))

    async def token_by_token(engine: EngineConnection) -> None:
        await engine.request()
        engine.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(40):
            engine.send(chunk(number))
            await until(partial(passed, number))
        engine.send(LAST_CHUNK)

    async with FakeEngine(token_by_token) as engine, connections_to(engine.url) as connections:
        backend = await connections.connect()
        await backend.request([GET], exchange, is_head=False)
        connections.release(backend)
    assert len(connection.blocks) >= 40
    assert excerpt.read() == b"".join(b"data: %d\n\n" % number for number in range(40))
    assert exchange.sent_bytes == sum(map(len, connection.blocks))


def test_the_facts_of_a_reply_are_parsed_once_for_all_observers() -> None:
    parsed: list[bytes] = []

    def parse(reply: bytes) -> int:
        parsed.append(reply)
        return len(reply)

    exchange, _, excerpt = excerpted()
    stream(exchange, 2)
    assert excerpt.parsed(parse) == excerpt.parsed(parse) == len(excerpt.read())
    assert len(parsed) == 1
    assert excerpt.parsed(bytes.upper) == excerpt.read().upper()


class Shouting:
    """An editor."""

    def edit(self, block: bytes) -> bytes:
        return block.upper()

    def write_function(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        return lambda block: write(block.upper())


def test_an_editor_changes_what_the_client_gets_and_not_what_observers_see() -> None:
    recorder = Recorder()
    exchange, connection = observed(recorder)
    exchange.observers.edit_with(Shouting())
    stream(exchange, 2)
    assert recorder.blocks() == [chunk(0), chunk(1), LAST_CHUNK]
    assert b"".join(connection.blocks).endswith(chunk(0).upper() + chunk(1).upper() + LAST_CHUNK)
