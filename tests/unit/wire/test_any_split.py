"""Splits and delays by the network never change a message's meaning, and no input yields an ambiguous request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.fakes.memory import run
from support.fakes.messages import BAD_REPLIES, CHUNKED, GET, HOST, MALFORMED, ODD, REPLIES, TOKENS, VALID, post
from support.fakes.rules import (
    AT_ONCE,
    OURS,
    Delays,
    backend_requests,
    check_framing,
    check_with_another_parser,
    pieces,
    relayed,
    seen,
)


@st.composite
def mutated(draw: st.DrawFn, messages: Sequence[bytes]) -> bytes:
    """Some of ``messages`` in a row; in half of the cases, with an error in them."""
    stream = b"".join(draw(st.lists(st.sampled_from(messages), min_size=1, max_size=9)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        start = draw(st.integers(0, len(stream)))
        end = start + draw(st.integers(0, 3))
        stream = stream[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=2)) + stream[end:]
    return stream


CUTS = st.lists(st.integers(0, 900), max_size=12) | st.just(range(3000))
REQUESTS = mutated(VALID + ODD + MALFORMED)


DELAYS = st.builds(
    Delays,
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.integers(0, 6),
    st.none() | st.integers(1, 400),
    st.integers(0, 200),
)


@given(REQUESTS, CUTS, DELAYS)
@example(b"\r\n\r\n" + GET, [2], AT_ONCE)  # two superfluous line breaks
@example(b"GET /" + b"l" * 50 + b" HTTP/1.1\r\n" + HOST + b"\r\n", [61], AT_ONCE)  # a line just short enough
@example(b"GET / HTTP/1.1\n" + HOST + b"X: 1\r\n" * 9 + b"\r\n", [15], AT_ONCE)  # two errors: the first one counts
@example(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"1" * 300 + b"\n\r\n\r\n", range(3000), AT_ONCE)
@example(CHUNKED + b"\r\n29\r\n" + b"x" * 41 + b"X\r\n", range(3000), AT_ONCE)
@settings(max_examples=600)
def test_requests_are_parsed_alike_however_they_are_split_and_delayed(
    stream: bytes, cuts: list[int], delays: Delays
) -> None:
    assert run(seen(pieces(stream, cuts), delays)) == run(seen([stream], AT_ONCE))


@given(mutated(REPLIES + BAD_REPLIES), CUTS, st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=600)
def test_a_reply_is_parsed_alike_however_it_is_split(
    stream: bytes, cuts: Sequence[int], is_head: bool, ends: bool, takes_chunks: bool
) -> None:
    whole = run(relayed([stream], is_head=is_head, ends=ends, takes_chunks=False))
    split = run(relayed(pieces(stream, cuts), is_head=is_head, ends=ends, takes_chunks=takes_chunks))
    if whole.fault is not None:  # payload parsed in the same block as an error is not forwarded
        assert split.payload.startswith(whole.payload)
        whole = replace(whole, payload=split.payload)
    assert split == whole


@given(REQUESTS, CUTS, st.booleans())
@settings(max_examples=400)
def test_any_client_input_yields_one_unambiguous_request_to_the_backend(
    stream: bytes, cuts: Sequence[int], close: bool
) -> None:
    for exchange, sent in run(backend_requests(pieces(stream, cuts), close=close)):  # PA29
        check_framing(exchange, sent, close=close)
        check_with_another_parser(exchange, sent)


@given(st.lists(st.sampled_from([b"x-a", b"X-B", b"Accept", b"Host", b"Content-Length", b"close", b"Via"]), min_size=1))
def test_fields_named_in_connection_are_not_forwarded_to_a_backend(named: list[bytes]) -> None:
    fields = b"".join(b"%b: 1\r\n" % name for name in (b"X-A", b"x-b", b"accept", b"x-c"))
    stream = post(b"hello", b"Connection: " + b" ,\t".join(named) + b"\r\n" + fields)
    ((exchange, sent),) = run(backend_requests([stream], close=False))
    check_framing(exchange, sent, close=False)
    names = {line.partition(b":")[0].lower() for line in sent.partition(b"\r\n\r\n")[0].split(b"\r\n")}
    assert b"x-c" in names
    assert not names & {name.lower() for name in named} - OURS - {b"via"}
