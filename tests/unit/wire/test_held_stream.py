from __future__ import annotations

import pytest

from inference_engine_proxy_server.wire.held_stream import HeldStream


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def held(content_length: int | None = None, *, chunked: bool = False) -> HeldStream:
    return HeldStream(chunked=chunked, content_length=content_length)


EVENTS = {
    "data": b"data: 1\n\n",
    "no blank after the colon": b"data:1\n\n",
    "data without value": b"data\n\n",
    "CRLF": b"data: 1\r\n\r\n",
    "CR": b"data: 1\r\r",
    "fields before the data": b"id: 7\nevent: message_start\ndata: {}\n\n",
    "byte-order mark": b"\xef\xbb\xbfdata: 1\n\n",
    "after a comment": b": hello\n\ndata: 1\n\n",
    "comment within the event": b": hello\ndata: 1\n\n",
    "after a ping": b"event: ping\ndata: {}\n\ndata: 1\n\n",
}
NO_EVENTS = {
    "nothing": b"",
    "comment": b": data: 1\n\n",
    "llama.cpp's ping": b":\n\n",
    "Anthropic's ping": b'event: ping\ndata: {"type": "ping"}\n\n',
    "retry time": b"retry: 100\n\n",
    "other field": b"metadata: 1\n\n",
    "unfinished event": b"data: 1\n",
    "one CRLF": b"data: 1\r\n",
}


@pytest.mark.parametrize("stream", EVENTS.values(), ids=EVENTS)
def test_first_event_ends_the_hold_split_at_any_byte(stream: bytes) -> None:
    assert held().take(stream)
    for cut in range(1, len(stream)):
        one = held()
        assert not one.take(stream[:cut]), cut
        assert one.take(stream[cut:]), cut
        assert one.block == one.payload[: len(one.block)] == stream


@pytest.mark.parametrize("stream", NO_EVENTS.values(), ids=NO_EVENTS)
def test_what_is_no_event_does_not_end_the_hold(stream: bytes) -> None:
    assert not held().take(stream)
    assert not held(chunked=True).take(chunk(stream) if stream else b"")


def test_complete_body_ends_the_hold() -> None:
    assert held(chunked=True).take(chunk(b": x\n\n") + b"0\r\n\r\n")
    assert held(content_length=5).take(b": x\n\n")
    assert not held(content_length=6).take(b": x\n\n")


def test_no_more_than_64_kib_are_held() -> None:
    comments = held()
    taken = 1
    while not comments.take(b": keep-alive\n\n"):
        taken += 1
    assert 64 * 1024 < taken * 14 < 64 * 1024 + 15


def test_long_first_event_is_not_held_to_its_end() -> None:
    assert held().take(b"data: " + b"x" * 1000)
    assert not held().take(b": " + b"x" * 1000)


def test_keep_alives_can_be_taken_out() -> None:
    stream = held(chunked=True)
    assert not stream.take(chunk(b": a\n\n") + chunk(b": b\n\n: c"))
    assert stream.take_keep_alives() == b": a\n\n: b\n\n"
    assert (stream.payload, stream.is_rewritten) == (b": c", True)
    assert stream.take(chunk(b"\n\ndata: 1\n\n"))
    assert stream.payload == b": c\n\ndata: 1\n\n"
