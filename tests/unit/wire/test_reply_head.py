from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.errors import InvalidReply
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.reply_head import ReplyHeadReader, parse_reply_head


@given(st.binary(max_size=200))
def test_garbage_raises_invalid_reply_and_no_other_error(section: bytes) -> None:
    with pytest.raises(InvalidReply):
        parse_reply_head(section)


def test_a_reply_head_is_parsed() -> None:
    head = parse_reply_head(
        b"HTTP/1.1 404 Not Found\r\nServer: x\r\nContent-Length: 3\r\nKeep-Alive: timeout=5, max=100\r\n"
        b"X-Request-Id: theirs\r\nX-Backend: theirs\r\nContent-Encoding: gzip\r\n"
    )
    assert (head.status, head.reason, head.content_length, head.chunked) == (404, b" Not Found", 3, False)
    assert (head.keep_alive, head.keep_alive_seconds) == (True, 5)
    assert head.passed_on == b"Server: x\r\nContent-Encoding: gzip\r\n"


def test_a_reply_needs_no_reason_and_no_fields() -> None:
    head = parse_reply_head(b"HTTP/1.1 200\r\n")
    assert (head.status, head.reason, head.content_length, head.chunked) == (200, b" ", None, False)
    assert head.keep_alive_seconds is None


@pytest.mark.parametrize(
    ("reply", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nTransfer-Encoding: chunked\r\n", False),
    ],
    ids=["1.1", "1.1-close", "1.0", "1.0-keep-alive", "BF19-1.0-chunked"],
)
def test_keep_alive_follows_version_and_connection_field(reply: bytes, *, keep_alive: bool) -> None:
    assert parse_reply_head(reply).keep_alive is keep_alive


BAD_REPLIES = {
    "BF19-chunked-twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n",
    "BF19-two-codings-fields": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "BF19-chunked-gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n",
    "BF19-gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
    "BF19-length-and-coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    "BF20-no-colon": b"HTTP/1.1 200 OK\r\nX\r\n",
    "BF20-nul": b"HTTP/1.1 200 OK\r\nX: \0\r\n",
    "BF20-bare-line-feed": b"HTTP/1.1 200 OK\nX: 1\r\n",
    "BF20-bare-carriage-return": b"HTTP/1.1 200 OK\r\nX: \r1\r\n",
    "BF20-folded-line": b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n",
    "BF20-blank-before-colon": b"HTTP/1.1 200 OK\r\nX : 1\r\n",
    "BF42-other-protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n",
    "signed-length": b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n",
    "version-2": b"HTTP/2.0 200 OK\r\n",
    "status-of-two-digits": b"HTTP/1.1 99 OK\r\n",
    "status-zero": b"HTTP/1.1 099 OK\r\n",
    "status-of-four-digits": b"HTTP/1.1 2000 OK\r\n",
}


@pytest.mark.parametrize("reply", BAD_REPLIES.values(), ids=BAD_REPLIES)
def test_a_bad_reply_is_refused(reply: bytes) -> None:
    with pytest.raises(InvalidReply):
        parse_reply_head(reply)


@pytest.mark.parametrize("received", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01", b"220 mail ESMTP\r\n", b"HTTQ"])
def test_another_protocol_is_refused_before_the_end_of_a_section(received: bytes) -> None:
    with pytest.raises(InvalidReply):
        ReplyHeadReader(HeadMemory()).feed(received)


@pytest.mark.parametrize("received", [b"H", b"HTTP/1.", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_the_beginning_of_a_section_is_waited_for(received: bytes) -> None:
    assert ReplyHeadReader(HeadMemory()).feed(received) is None


def test_hop_by_hop_fields_of_the_backend_are_not_forwarded() -> None:
    reply = b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nUpgrade: h2c\r\nTrailer: x\r\nX-End: 2\r\n"
    assert parse_reply_head(reply).passed_on == b"X-End: 2\r\n"
