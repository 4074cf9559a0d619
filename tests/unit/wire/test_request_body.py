from __future__ import annotations

import sys

import pytest

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.request_body import RequestBody
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead, parse_request_head


def head(framing: bytes) -> RequestHead:
    section = b"POST / HTTP/1.1\r\nHost: a\r\n" + framing
    return parse_request_head(section, HeadLimits(line_bytes=100, total_bytes=1000, field_count=10))


LENGTH = head(b"Content-Length: 5\r\n")
CHUNKED = head(b"Transfer-Encoding: chunked\r\n")
IN_CHUNKS = b"2\r\nhe\r\n3;x\r\nllo\r\n0\r\nT: 1\r\n\r\n"


@pytest.mark.parametrize(("head", "sent"), [(LENGTH, b"hello"), (CHUNKED, IN_CHUNKS)], ids=["length", "chunked"])
def test_a_body_is_the_same_however_it_is_split(head: RequestHead, sent: bytes) -> None:
    sent += b"GET"
    for first in range(len(sent)):
        body = RequestBody(head, 5)
        excess = b""
        for block in (sent[:first], sent[first:]):
            if body.complete:
                excess += block
            else:
                body.feed(block)
                excess += body.excess
        assert (body.content, body.complete, excess) == (b"hello", True, b"GET")


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 0\r\n"], ids=["none", "empty"])
def test_no_body_is_complete_at_once(framing: bytes) -> None:
    body = RequestBody(head(framing), 0)
    assert (body.complete, body.content, body.excess) == (True, b"", b"")


def test_a_body_whose_announced_length_exceeds_the_limit_is_refused_unread() -> None:
    with pytest.raises(ClientError) as refusal:
        RequestBody(LENGTH, 4)
    assert refusal.value.status == 413


def test_a_chunked_body_is_refused_once_its_chunks_exceed_the_limit() -> None:
    body = RequestBody(CHUNKED, 4)
    body.feed(b"4\r\nhell\r\n")
    with pytest.raises(ClientError) as refusal:
        body.feed(b"1\r\no\r\n")
    assert refusal.value.status == 413


def test_malformed_chunks_get_400() -> None:
    with pytest.raises(ClientError) as refusal:
        RequestBody(CHUNKED, 100).feed(b"5\r\nhelloX")
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_framing")


def test_memory_held_for_tiny_chunks_stays_below_twice_their_payload() -> None:
    body = RequestBody(CHUNKED, 1_000_000)
    for _ in range(4):
        body.feed(b"2\r\n\xc3\xa4\r\n" * 2_000)
    held = sum(sys.getsizeof(piece) for piece in body._pieces)  # noqa: SLF001 - nothing public shows the memory held
    assert held < 2 * len(body.content)
