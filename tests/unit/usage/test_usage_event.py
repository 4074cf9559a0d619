"""The usage event that a client did not ask for is taken out, and nothing else is changed, held or delayed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded
from inference_engine_proxy_server.errors import BackendBroke
from inference_engine_proxy_server.usage.usage_event import UsageEventRemover
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.framing import ChunkedBody, last_chunk, one_chunk
from unit.wire.test_exchange import EVENTS, Connection, exchange_for

FOLDER = Path(recorded.__file__).parent
USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
TOKENS = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(3)]


def edited(fields: bytes = EVENTS, version: bytes = b"1.1") -> tuple[Exchange, Connection]:
    exchange, connection = exchange_for(b"POST /v1/chat/completions HTTP/" + version)
    exchange.observers.edit_with(UsageEventRemover(exchange))
    exchange.begin(200, b" OK", fields, None)
    return exchange, connection


def body_of(connection: Connection) -> bytes:
    """The payload of the reply, whose framing must be valid and complete."""
    chunks = b"".join(connection.blocks).partition(b"\r\n\r\n")[2]
    body = ChunkedBody()
    payload = b"".join(body.feed(chunks))
    assert (body.complete, body.excess) == (True, b"")
    return payload


def write(exchange: Exchange, payload: bytes, *, directly: bool) -> None:
    """Write one chunk, as the backend's connection does."""
    chunk = one_chunk(payload)
    stream = exchange.pass_through
    if directly and stream is not None:
        stream.sent_bytes += len(chunk)
        stream.last_block = chunk
        stream.write_through(chunk)
    else:
        exchange.write_chunks(chunk)


def pieces_of(body: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = [0, *sorted({cut % len(body) for cut in cuts}), len(body)]
    return [body[start:end] for start, end in pairwise(ends) if start < end]


@pytest.mark.parametrize("directly", [True, False])
def test_the_event_is_taken_out_and_each_other_event_passes_at_once(directly: bool) -> None:
    exchange, connection = edited()
    for number, event in enumerate(TOKENS):
        write(exchange, event, directly=directly)
        assert connection.blocks[-1].endswith(one_chunk(event))
        assert len(connection.blocks) == number + 1
    write(exchange, USAGE, directly=directly)
    write(exchange, DONE, directly=directly)
    exchange.end()
    assert body_of(connection) == b"".join(TOKENS) + DONE
    assert exchange.sent_bytes == len(b"".join(connection.blocks))


@pytest.mark.parametrize("name", ["vllm/chat-stream-usage-raw", "llama-server/chat-stream-usage-raw"])
@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 1000, 10**6])
@pytest.mark.parametrize("directly", [True, False])
def test_recorded_streams_lose_the_usage_event_only(name: str, piece_bytes: int, directly: bool) -> None:
    chunks = (FOLDER / f"{name}.http").read_bytes().partition(b"\r\n\r\n")[2]
    body = b"".join(ChunkedBody().feed(chunks))
    exchange, connection = edited()
    for piece in pieces_of(body, range(0, len(body), piece_bytes)):
        write(exchange, piece, directly=directly)
    exchange.end()
    events = body.split(b"\n\n")
    assert sum(b'"choices":[],' in event for event in events) == 1
    assert body_of(connection) == b"\n\n".join(event for event in events if b'"choices":[],' not in event)


@given(cuts=st.lists(st.integers(0, 10**6), max_size=8), directly=st.booleans(), whole_end=st.booleans())
def test_the_event_is_taken_out_wherever_the_stream_is_cut(cuts: list[int], directly: bool, whole_end: bool) -> None:
    exchange, connection = edited()
    for piece in pieces_of(b"".join([*TOKENS, USAGE, DONE]), cuts):
        write(exchange, piece, directly=directly)
    if whole_end:
        exchange.write_last_chunks(last_chunk)
    exchange.end()
    assert body_of(connection) == b"".join(TOKENS) + DONE


def test_the_event_is_taken_out_of_a_block_that_ends_the_stream() -> None:
    exchange, connection = edited()
    exchange.write_last_chunks(one_chunk(TOKENS[0] + USAGE) + one_chunk(DONE) + last_chunk)
    exchange.end()
    assert body_of(connection) == TOKENS[0] + DONE


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{"content":"a \\"usage\\": {} b"}}]}\n\n',
        b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":3}}\n\n',
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"prompt_filter_results":[{"usage":1}]}\n\n',
        b'data: {"usage":{"prompt_tokens":3}}\n\n',
        b'data: {"choices":[],"usage":\n\n',
        b': "usage"\n\n',
        b'event: "usage"\n\n',
    ],
)
def test_no_other_event_is_taken_out(event: bytes) -> None:
    exchange, connection = edited()
    write(exchange, event, directly=False)
    write(exchange, event, directly=True)
    exchange.end()
    assert body_of(connection) == 2 * event


def test_an_unfinished_event_at_the_end_of_the_stream_is_sent() -> None:
    exchange, connection = edited()
    write(exchange, TOKENS[0] + TOKENS[1][:-5], directly=False)
    assert connection.blocks[-1].endswith(one_chunk(TOKENS[0]))
    exchange.end()
    assert body_of(connection) == TOKENS[0] + TOKENS[1][:-5]


def test_a_broken_stream_ends_with_an_error_event_between_two_events() -> None:
    exchange, connection = edited()
    write(exchange, TOKENS[0], directly=False)
    write(exchange, TOKENS[1][:-5], directly=True)
    exchange.fail(BackendBroke("It broke."))
    assert one_chunk(TOKENS[0]) in connection.blocks[0]
    [error] = connection.blocks[1:]
    assert error.split(b"\r\n")[1].startswith(b'data: {"error"')


def test_a_very_long_event_is_not_held() -> None:
    exchange, connection = edited()
    event = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 100_000)
    for piece in pieces_of(event, range(0, len(event), 1000)):
        write(exchange, piece, directly=True)
    assert len(b"".join(connection.blocks)) > 90_000
    exchange.end()
    assert body_of(connection) == event


@pytest.mark.parametrize("length", [None, len(TOKENS[0] + USAGE)])
def test_a_reply_without_chunks_is_not_edited(length: int | None) -> None:
    exchange, connection = exchange_for(b"POST /v1/chat/completions HTTP/1.%d" % (0 if length is None else 1))
    exchange.observers.edit_with(UsageEventRemover(exchange))
    exchange.begin(200, b" OK", EVENTS, length)
    exchange.write(TOKENS[0] + USAGE)
    exchange.end()
    assert b"".join(connection.blocks).endswith(TOKENS[0] + USAGE)
