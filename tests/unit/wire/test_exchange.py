from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import pytest

from inference_engine_proxy_server.errors import BackendBroke, CapacityError, InvalidReply
from inference_engine_proxy_server.wire.client_side import ClientReceiver
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import CLIENT_GONE, Outcome
from inference_engine_proxy_server.wire.request_head import HeadLimits, parse_request_head

LIMITS = HeadLimits(line_bytes=1000, total_bytes=1000, field_count=10)
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\n"


class Connection:
    """A client side that records its output; its clock counts its readings."""

    is_behind = False

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.done: list[Exchange] = []
        self.comments = 0
        self.clock: Callable[[], float] = map(float, itertools.count(1)).__next__

    def write(self, block: bytes) -> None:
        self.blocks.append(block)

    def comment_sent(self) -> None:
        self.comments += 1

    def exchange_done(self, exchange: Exchange) -> None:
        self.done.append(exchange)

    def switch_protocols(self, receiver: ClientReceiver) -> tuple[asyncio.Transport, bytes]:
        raise AssertionError


def exchange_for(
    line: bytes = b"POST /v1/chat/completions HTTP/1.1", fields: bytes = b""
) -> tuple[Exchange, Connection]:
    connection = Connection()
    head = parse_request_head(line + b"\r\nHost: a\r\n" + fields, LIMITS)
    return Exchange(connection, head, b"", "id-1", "1.2.3.4:5"), connection


def test_the_header_section_is_sent_with_the_first_piece_of_body() -> None:
    exchange, connection = exchange_for()
    exchange.backend_fields = b"x-backend: b\r\n"
    exchange.begin(200, b" OK", b"server: x\r\n", 10)
    assert not connection.blocks
    assert not exchange.begun
    exchange.write(b"hello")
    exchange.write(b"world")
    exchange.end()
    head = b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 10\r\nx-request-id: id-1\r\nx-backend: b\r\n\r\n"
    assert connection.blocks == [head + b"hello", b"world"]
    assert connection.done == [exchange]
    assert (exchange.sent_bytes, exchange.status, exchange.first_byte_at) == (len(head) + 10, 200, 2.0)


def test_a_whole_reply_is_sent_in_one_block() -> None:
    exchange, connection = exchange_for()
    exchange.backend_fields = b"x-backend: b\r\n"
    exchange.write_whole(200, b" OK", b"server: x\r\n", b"hello")
    exchange.end()
    head = b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 5\r\nx-request-id: id-1\r\nx-backend: b\r\n\r\n"
    assert connection.blocks == [head + b"hello"]
    assert (exchange.sent_bytes, exchange.status, exchange.begun) == (len(head) + 5, 200, True)


def test_nothing_is_sent_of_a_reply_found_malformed_after_its_head() -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b" OK", b"", None)
    exchange.fail(InvalidReply("The backend's chunked reply is malformed."))
    [block] = connection.blocks
    head, _, body = block.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502")
    assert b"chunked" not in head
    assert b"content-length: %d\r\n" % len(body) in head


def test_flush_sends_a_waiting_header_section_once() -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b"", b"", None)
    exchange.flush()
    exchange.flush()
    assert connection.blocks == [b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\nx-request-id: id-1\r\n\r\n"]


GET = b"GET / HTTP/1.1"
OLD = b"GET / HTTP/1.0"
KEEP = b"Connection: keep-alive\r\n"
FRAMINGS = {
    "length": (GET, b"", 200, 5, b"content-length: 5\r\n", b"hello"),
    "length-and-close": (
        GET,
        b"Connection: close\r\n",
        200,
        5,
        b"content-length: 5\r\nconnection: close\r\n",
        b"hello",
    ),
    "unknown-length": (GET, b"", 200, None, b"transfer-encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    "1.0": (OLD, b"", 200, 5, b"content-length: 5\r\nconnection: close\r\n", b"hello"),
    "1.0-keep-alive": (OLD, KEEP, 200, 5, b"content-length: 5\r\nconnection: keep-alive\r\n", b"hello"),
    "1.0-unknown-length": (OLD, KEEP, 200, None, b"connection: close\r\n", b"hello"),
    "head": (b"HEAD / HTTP/1.1", b"", 200, 5, b"content-length: 5\r\n", b""),
    "head-unknown-length": (b"HEAD / HTTP/1.1", b"", 200, None, b"", b""),
    "204": (GET, b"", 204, 0, b"", b""),
    "204-unknown-length": (GET, b"", 204, None, b"", b""),
    "304": (GET, b"", 304, 5, b"content-length: 5\r\n", b""),
}


@pytest.mark.parametrize(("line", "fields", "status", "length", "framing", "body"), FRAMINGS.values(), ids=FRAMINGS)
def test_framing_fits_the_client_the_method_and_the_status(
    line: bytes, fields: bytes, status: int, length: int | None, framing: bytes, body: bytes
) -> None:
    exchange, connection = exchange_for(line, fields)
    exchange.begin(status, b"", b"", length)
    exchange.write(b"hello")
    exchange.end()
    head = b"HTTP/1.1 %d\r\n%bx-request-id: id-1\r\n\r\n" % (status, framing)
    assert b"".join(connection.blocks) == head + body
    assert exchange.keep_alive is (b"close" not in framing)
    assert exchange.takes_chunks is (b"chunked" in framing)


def test_whole_chunks_are_sent_unchanged() -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b"", b"", None)
    exchange.write_chunks(b"1\r\na\r\n1\r\nb\r\n")
    exchange.write_last_chunks(b"0\r\n\r\n")
    exchange.end()
    assert b"".join(connection.blocks).endswith(b"\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
    assert len(connection.done) == 1


def test_the_proxys_own_reply_has_reason_and_length() -> None:
    exchange, connection = exchange_for()
    exchange.respond(404, b"content-type: text/plain\r\n", b"no")
    status, date, *fields = connection.blocks[0].split(b"\r\n")
    assert status == b"HTTP/1.1 404 Not Found"
    assert abs(parsedate_to_datetime(date.removeprefix(b"date: ").decode()).timestamp() - time.time()) < 60
    assert fields == [b"content-type: text/plain", b"content-length: 2", b"x-request-id: id-1", b"", b"no"]
    exchange, connection = exchange_for()
    exchange.respond(599, b"", b"")
    assert connection.blocks[0].startswith(b"HTTP/1.1 599 \r\n")


def test_a_failure_before_the_reply_began_becomes_a_whole_reply() -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b" OK", EVENTS, None)  # never sent
    exchange.fail(CapacityError("Full.", retry_after_seconds=3))
    head, _, body = connection.blocks[0].partition(b"\r\n\r\n")
    status, _date, *fields = head.split(b"\r\n")
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert fields[:2] == [b"content-type: application/json", b"retry-after: 3"]
    assert json.loads(body)["error"]["message"] == "Full."
    assert (exchange.outcome, exchange.status, connection.done) == (Outcome.COMPLETE, 503, [exchange])


def test_a_failure_after_the_end_has_no_effect() -> None:
    exchange, connection = exchange_for()
    exchange.respond(200, b"", b"a")
    exchange.fail(BackendBroke("Gone."))
    assert (len(connection.blocks), len(connection.done), exchange.outcome) == (1, 1, Outcome.COMPLETE)


def as_writes(*payloads: bytes) -> Callable[[Exchange], None]:
    def send(exchange: Exchange) -> None:
        for payload in payloads:
            exchange.write(payload)

    return send


def as_chunks(block: bytes) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.write_chunks(block)


BETWEEN_EVENTS = {
    "before-the-first": as_writes(),
    "after-one": as_writes(b"data: 1\n\n"),
    "after-carriage-returns": as_writes(b"data: 1\r\r"),
    "after-both": as_writes(b"data: 1\r\n\r\n"),
    "after-chunks": as_chunks(b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n"),
}
INSIDE_AN_EVENT = {
    "no-line-end": as_writes(b"data: 1"),
    "one-line-end": as_writes(b"data: 1\r\n"),
    "line-end-alone": as_writes(b"data: 1", b"\n"),
    "carriage-return-and-line-end-alone": as_writes(b"data: 1", b"\r\n"),
    "carriage-return-alone": as_writes(b"data: 1", b"\r"),
    "chunks": as_chunks(b"9\r\ndata: 1\n\n\r\n7\r\ndata: 2\r\n"),
    "chunks-with-line-end-alone": as_chunks(b"7\r\ndata: 1\r\n1\r\n\n\r\n"),
}


@pytest.mark.parametrize("send", BETWEEN_EVENTS.values(), ids=BETWEEN_EVENTS)
def test_a_stream_broken_between_events_gets_an_error_event(send: Callable[[Exchange], None]) -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b"", EVENTS, None)
    send(exchange)
    exchange.flush()
    before = len(connection.blocks)
    exchange.fail(BackendBroke("Gone."))
    event = connection.blocks[-1]
    assert len(connection.blocks) == before + 1
    assert event.partition(b"\r\n")[2].startswith(b'data: {"error"')
    assert event.endswith(b"\n\n\r\n")
    assert (exchange.outcome, exchange.done, connection.done) == (Outcome.BROKEN, True, [exchange])


@pytest.mark.parametrize("send", INSIDE_AN_EVENT.values(), ids=INSIDE_AN_EVENT)
def test_a_stream_broken_inside_an_event_ends_without_an_error_event(send: Callable[[Exchange], None]) -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b"", EVENTS, None)
    send(exchange)
    before = list(connection.blocks)
    exchange.fail(BackendBroke("Gone."))
    assert connection.blocks == before
    assert (exchange.outcome, connection.done) == (Outcome.BROKEN, [exchange])


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (b"content-type: application/json\r\n", None),
        (EVENTS, 1000),
        (EVENTS + b"Content-Encoding: gzip\r\n", None),
    ],
    ids=["json", "known-length", "encoded"],
)
def test_a_broken_reply_that_is_no_event_stream_gets_no_error_event(fields: bytes, length: int | None) -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b"", fields, length)
    exchange.write(b"data: 1\n\n")
    exchange.fail(BackendBroke("Gone."))
    assert len(connection.blocks) == 1
    assert exchange.outcome is Outcome.BROKEN


def test_a_broken_stream_to_an_http_1_0_client_ends_with_an_unchunked_event() -> None:
    exchange, connection = exchange_for(b"POST /v1/messages HTTP/1.0")
    exchange.begin(200, b"", EVENTS, None)
    exchange.write(b"data: 1\n\n")
    exchange.fail(BackendBroke("Gone."))
    assert connection.blocks[-1].startswith(b"event: error\ndata: ")
    assert exchange.ends_with_connection


def test_output_after_the_client_has_left_is_discarded() -> None:
    exchange, connection = exchange_for()
    exchange.begin(200, b"", b"", None)
    exchange.client_left()
    exchange.write(b"late")
    exchange.end()
    exchange.fail(BackendBroke("Gone."))
    assert (connection.blocks, connection.done, exchange.outcome) == ([], [], Outcome.CLIENT_LEFT)


class Source:
    """A source that counts comments."""

    is_unanswered = True

    def __init__(self) -> None:
        self.comments = 0

    def comment_sent(self) -> None:
        self.comments += 1

    def pause_reading(self) -> None:
        raise AssertionError

    def resume_reading(self) -> None:
        raise AssertionError


def test_a_comment_begins_an_event_stream_and_no_reply() -> None:
    exchange, connection = exchange_for()
    exchange.source = source = Source()
    exchange.backend_fields = b"x-backend: b\r\n"
    for number in (1, 2):
        exchange.send_comment(b": c\n\n")
        assert (source.comments, connection.comments) == (number, number)
    head, _, body = b"".join(connection.blocks).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/event-stream\r\n" in head
    assert b"x-accel-buffering: no\r\n" in head
    assert b"x-backend" not in head
    assert body == b"5\r\n: c\n\n\r\n" * 2
    assert exchange.has_only_comments


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages", b"/v1/responses"])
def test_an_error_after_comments_is_an_event_and_has_its_own_status_in_the_log(path: bytes) -> None:
    exchange, connection = exchange_for(b"POST %b HTTP/1.1" % path)
    exchange.send_comment(b": c\n\n")
    exchange.fail(CapacityError("Full.", status=429))
    assert b'"message": "Full."' in connection.blocks[-1]
    assert (exchange.status, exchange.outcome) == (429, Outcome.BROKEN)


def test_a_client_that_leaves_after_comments_has_got_no_reply() -> None:
    exchange, _ = exchange_for()
    exchange.send_comment(b": c\n\n")
    exchange.client_left()
    assert exchange.status == CLIENT_GONE
