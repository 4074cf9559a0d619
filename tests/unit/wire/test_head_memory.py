from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.reply_head import ReplyHead, parse_reply_head
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead, parse_request_head

LIMITS = HeadLimits(line_bytes=200, total_bytes=4096, field_count=20)
POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-One: 1\r\nX-Request-Id: id\r\n"
GET = b"GET /v1/x HTTP/1.1\r\nHost: a\r\nX-One: 1\r\n"


def values(head: RequestHead | ReplyHead) -> dict[str, object]:
    """All parsed values of ``head``."""
    return {name: getattr(head, name) for name in head.__slots__}


def remembering(section: bytes) -> HeadMemory[RequestHead]:
    memory = HeadMemory[RequestHead]()
    memory.remember(section, parse_request_head(section, LIMITS))
    return memory


@pytest.mark.parametrize("section", [POST, GET])
def test_an_identical_section_is_recalled(section: bytes) -> None:
    recalled = remembering(section).recall(section)

    assert recalled is not None
    assert values(recalled) == values(parse_request_head(section, LIMITS))


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
def test_a_section_with_another_length_is_recalled_with_that_length(name: bytes) -> None:
    before, after = POST.replace(b"Content-Length", name), POST.replace(b"Content-Length: 12", name + b": 34567")

    recalled = remembering(before).recall(after)

    assert recalled is not None
    assert values(recalled) == values(parse_request_head(after, LIMITS))
    assert recalled.content_length == 34567


LENGTHS = [b"", b"0", b"00", b"012", b"+1", b"-1", b"1_0", b"1 0", b"0x1", b" 12", b"12 ", b"1" * 19, b"\xd9\xa1"]
CHANGES = [
    POST + b"X-Two: 2\r\n",
    POST.replace(b"X-One: 1\r\n", b""),
    POST.replace(b"POST", b"PUT"),
    POST.replace(b"12\r\n", b"12\r\nContent-Length: 12\r\n"),
    POST.replace(b"12\r\n", b"12\r\nTransfer-Encoding: chunked\r\n"),
    POST[:-1],
    GET,
    b"",
]


@pytest.mark.parametrize("other", [*(POST.replace(b"12", length) for length in LENGTHS), *CHANGES])
def test_a_section_with_any_other_difference_is_not_recalled(other: bytes) -> None:
    assert remembering(POST).recall(other) is None


def test_a_section_without_length_is_recalled_only_if_identical() -> None:
    assert remembering(GET).recall(GET + b"Content-Length: 5\r\n") is None
    assert remembering(GET).recall(GET[:-2]) is None


def test_nothing_is_recalled_at_first() -> None:
    assert HeadMemory[RequestHead]().recall(b"") is None


def test_reply_heads_are_recalled_too() -> None:
    section = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nkeep-alive: timeout=7\r\nserver: s\r\n"
    memory = HeadMemory[ReplyHead]()
    memory.remember(section, parse_reply_head(section))
    other = section.replace(b": 5", b": 123")

    recalled = memory.recall(other)

    assert recalled is not None
    assert values(recalled) == values(parse_reply_head(other))


_FIELDS = [
    b"Content-Length: 5",
    b"Content-Length: 77",
    b"content-length:\t8 ",
    b"X-Content-Length: 9",
    b"X: 1",
    b"X: 2",
]


@given(st.lists(st.lists(st.sampled_from(_FIELDS), max_size=3), min_size=2, max_size=6))
def test_a_recalled_head_always_equals_the_parsed_one(sequence: list[list[bytes]]) -> None:
    memory = HeadMemory[RequestHead]()
    for fields in sequence:
        section = b"POST / HTTP/1.1\r\nHost: a\r\n" + b"".join(field + b"\r\n" for field in fields)
        recalled = memory.recall(section)
        try:
            parsed = parse_request_head(section, LIMITS)
        except ClientError:
            assert recalled is None
            continue
        assert recalled is None or values(recalled) == values(parsed)
        memory.remember(section, parsed)
