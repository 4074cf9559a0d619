from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inference_engine_proxy_server.wire.framing import ChunkedBody, InvalidChunk, last_chunk, one_chunk

PAYLOADS = st.lists(st.binary(min_size=1, max_size=300), max_size=8)
EXTENSIONS = st.sampled_from([b"", b"", b";a", b';a="b;c"', b"; x = y"])
TRAILERS = st.sampled_from([b"", b"X-Sum: 1\r\n", b"A:\r\nB: \t2\r\n"])
CUTS = st.lists(st.integers(min_value=0, max_value=4000), max_size=30)
Read = tuple[bytes, bool, bytes]
"""Payload, whether the body is complete, and the bytes after it."""


def pieces(block: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(block), *(cut for cut in cuts if cut < len(block))})
    return [block[start:end] for start, end in itertools.pairwise(edges)]


def read(blocks: list[bytes], *, passing_whole_chunks: bool = False) -> Read:
    """Parse ``blocks``; with ``passing_whole_chunks``, as the relay does, which feeds only blocks it cannot forward."""
    body = ChunkedBody()
    payload: list[bytes] = []
    excess = b""
    for block in blocks:
        if body.complete:
            excess += block
        elif passing_whole_chunks and body.whole_chunks(block):
            payload += ChunkedBody().feed(block)
        else:
            fed = body.feed(block)
            assert all(fed)
            payload += fed
            excess += body.excess
    return b"".join(payload), body.complete, excess


@given(PAYLOADS, st.lists(EXTENSIONS, min_size=9, max_size=9), TRAILERS, st.binary(max_size=20), CUTS)
@example([b"hello"], [b""] * 9, b"", b"", list(range(40)))
def test_a_body_is_parsed_alike_however_it_is_split(
    payloads: list[bytes], extensions: list[bytes], trailers: bytes, after: bytes, cuts: list[int]
) -> None:
    chunks = [
        b"%X%b\r\n%b\r\n" % (len(payload), extension, payload)
        for payload, extension in zip(payloads, extensions, strict=False)
    ]
    block = b"".join(chunks) + b"00" + extensions[-1] + b"\r\n" + trailers + b"\r\n" + after
    expected = b"".join(payloads), True, after
    assert read([block]) == expected
    assert read(pieces(block, cuts)) == expected
    assert read(pieces(block, list(range(len(block))))) == expected
    assert read(pieces(block, cuts), passing_whole_chunks=True) == expected


@given(PAYLOADS, CUTS)
def test_encoded_chunks_are_whole_and_decode_to_the_same_payload(payloads: list[bytes], cuts: list[int]) -> None:
    blocks = [one_chunk(payload) for payload in payloads]
    body = ChunkedBody()
    assert all(body.whole_chunks(block) and not body.complete for block in blocks)
    assert body.whole_chunks(last_chunk)
    assert body.complete
    whole = b"".join(blocks) + last_chunk
    assert ChunkedBody().whole_chunks(whole)
    assert read(pieces(whole, cuts)) == (b"".join(payloads), True, b"")


GARBAGE = st.binary(max_size=60) | st.lists(
    st.sampled_from([b"5", b"a", b"\r\n", b"\r", b"\n", b"0", b";x", b"hello", b"x: y", b"-", b" ", b"\xff"]),
    max_size=12,
).map(b"".join)


@given(GARBAGE, CUTS)
def test_garbage_is_judged_alike_however_it_is_split(garbage: bytes, cuts: list[int]) -> None:
    def result(blocks: list[bytes], *, passing_whole_chunks: bool = False) -> Read | None:
        try:
            return read(blocks, passing_whole_chunks=passing_whole_chunks)
        except InvalidChunk:
            return None

    whole, split, bytewise, relayed = (
        result([garbage]),
        result(pieces(garbage, cuts)),
        result(pieces(garbage, list(range(60)))),
        result(pieces(garbage, cuts), passing_whole_chunks=True),
    )
    assert split == relayed == whole == bytewise


INVALID = {
    "PA06-hex-prefix": b"0x5\r\nhello\r\n",
    "PA06-underscore": b"5_0\r\n",
    "PA06-plus": b"+5\r\nhello\r\n",
    "PA06-minus": b"-5\r\nhello\r\n",
    "PA06-leading-blank": b" 5\r\nhello\r\n",
    "PA06-trailing-blank": b"5 \r\nhello\r\n",
    "PA06-empty": b"\r\nhello\r\n",
    "PA06-17-digits": b"0" * 16 + b"5\r\nhello\r\n",
    "PA06-not-ascii": b"\xd9\xa5\r\nhello\r\n",
    "PA07-bare-line-feed-after-size": b"5\nhello\r\n",
    "PA07-bare-line-feed-in-extension": b"5;a\nb\r\nhello\r\n",
    "PA07-bare-carriage-return-in-extension": b"5;a\rb\r\nhello\r\n",
    "PA07-only-a-line-feed": b"\n",
    "PA08-payload-too-long": b"5\r\nhelloX\r\n",
    "PA08-two-other-bytes": b"5\r\nhelloXX5\r\nhello\r\n",
    "PA08-bare-line-feed-after-payload": b"5\r\nhello\n0\r\n\r\n",
    "PA08-carriage-returns-after-payload": b"5\r\nhello\r\r\n",
    "PA09-trailer-without-colon": b"0\r\nX\r\n\r\n",
    "PA09-trailer-with-blank": b"0\r\nX : 1\r\n\r\n",
    "PA09-folded-trailer": b"0\r\nX: 1\r\n 2\r\n\r\n",
    "PA09-nul-in-extension": b"5;\0\r\nhello\r\n",
    "long-extension": b"5;" + b"a" * 4100 + b"\r\nhello\r\n",
    "endless-extension": b"5;" + b"a" * 4100,
    "many-trailers": b"0\r\n" + b"X: 12345\r\n" * 600 + b"\r\n",
    "endless-trailer": b"0\r\nX:" + b"a" * 5000,
}


@pytest.mark.parametrize("block", INVALID.values(), ids=INVALID)
def test_an_invalid_chunked_body_is_refused(block: bytes) -> None:
    with pytest.raises(InvalidChunk):
        read([block])
    with pytest.raises(InvalidChunk):
        read(pieces(block, list(range(len(block)))))
    assert not ChunkedBody().whole_chunks(block)


@pytest.mark.parametrize(
    "block",
    [
        b"5\r\nhello\r\n0\r\n\r\nx",
        b"5\r\nhello\r\n5\r\nhel",
        b"5\r\nhello\r",
        b"5",
        b"5;a\r\nhello\r\n",
        b"0\r\nX: 1\r\n\r\n",
        b"ffffffffffffffff\r\nhello",
    ],
    ids=["excess", "part-of-chunk", "part-of-end", "part-of-size", "extension", "trailer", "huge"],
)
def test_a_block_with_anything_but_whole_chunks_leaves_the_state_unchanged(block: bytes) -> None:
    body = ChunkedBody()
    assert not body.whole_chunks(block)
    assert not body.complete
    fresh = ChunkedBody()
    assert body.feed(block) == fresh.feed(block)
    assert (body.complete, body.excess) == (fresh.complete, fresh.excess)


def test_nothing_is_whole_inside_a_chunk() -> None:
    body = ChunkedBody()
    body.feed(b"9\r\n")
    assert not body.whole_chunks(b"1\r\na\r\n")
    body = ChunkedBody()
    body.feed(b"1")
    assert not body.whole_chunks(b"1\r\na\r\n")


def test_whole_chunks_are_recognised_after_a_fed_chunk() -> None:
    body = ChunkedBody()
    body.feed(b"1\r\n")
    body.feed(b"a\r\n")
    assert body.whole_chunks(b"1\r\nb\r\n" + last_chunk)
    assert body.complete
