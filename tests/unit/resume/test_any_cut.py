"""Recorded streams of real engines, cut at any byte and continued."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine_proxy_server.resume.events import split_events
from inference_engine_proxy_server.resume.rules import problem_of
from inference_engine_proxy_server.wire.framing import ChunkedBody
from recorded import recorded
from support.resumed_stream import Stream

STREAMS = [
    ("llama-server", "chat-stream-raw"),
    ("llama-server", "chat-stream-usage-raw"),
    ("llama-server", "completions-stream-raw"),
    ("vllm", "chat-stream-raw"),
    ("vllm", "chat-stream-usage-raw"),
    ("vllm", "completions-stream-raw"),
]


def whole(engine: str, name: str) -> bytes:
    return b"".join(ChunkedBody().feed(recorded(engine, name).body))


def objects(body: bytes) -> list[dict[str, Any]]:
    """The JSON objects of whole events; fails on anything that is not a whole event."""
    events, rest = split_events(body)
    assert not rest
    lines = [event.strip() for event in events if not event.startswith(b":")]
    assert all(line.startswith(b"data: ") for line in lines)
    return [json.loads(line.removeprefix(b"data: ")) for line in lines if line != b"data: [DONE]"]


def text_of(found: list[dict[str, Any]]) -> str:
    choices = [choice for one in found for choice in one["choices"]]
    return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in choices)


def continuation(stream: bytes, delivered: str, *, echoes: bool) -> bytes:
    """What another engine sends after ``delivered``: the rest of ``stream``, under an identity of its own."""
    skipped = ""
    repeated = delivered if echoes else ""
    events: list[bytes] = []
    for one in objects(stream):
        text = text_of([one])
        if text and skipped != delivered:
            skipped += text
            continue
        if text and repeated:
            choice = one["choices"][0]
            choice.update({"text": repeated + text} if "text" in choice else {"delta": {"content": repeated + text}})
            repeated = ""
        events.append(b"data: " + json.dumps({**one, "id": "other", "created": 7}).encode() + b"\n\n")
    return b"".join(events) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("engine", "name", "echoes"),
    [(*stream, False) for stream in STREAMS] + [(*stream, True) for stream in STREAMS if "chat" in stream[1]],
)
def test_a_stream_cut_at_any_byte_is_continued_or_ends_between_two_events(engine: str, name: str, echoes: bool) -> None:
    original = whole(engine, name)
    expected = objects(original)
    continuations: dict[str, bytes] = {}
    right: set[bytes] = set()  # whole streams that were checked
    for cut in range(len(original) + 1):
        stream = Stream()
        stream.relay(original[:cut])
        transcript = stream.sink.transcript
        transcript.read()
        delivered = stream.client.body
        assert delivered == original[: original.rfind(b"\n\n", 0, cut) + 2 if b"\n\n" in original[:cut] else 0]
        problem = problem_of(transcript)
        if problem is not None:
            assert (problem, transcript.text_events) == ("one_event", 1)
            continue
        if transcript.finish_reason is not None:
            stream.sink.complete()
        else:
            if transcript.text not in continuations:
                assert transcript.text == text_of(objects(delivered))
                continuations[transcript.text] = continuation(original, transcript.text, echoes=echoes)
            stream.sink.resume(b"")
            stream.relay(continuations[transcript.text])
            stream.sink.end()
        assert stream.client.is_done
        body = stream.client.body
        if body in right:
            continue
        found = objects(body)
        assert text_of(found) == text_of(expected)
        assert {one["id"] for one in found} == {expected[0]["id"] if delivered else "other"}
        assert body.count(b"data: [DONE]") == 1
        right.add(body)


RECORDED = {
    "/v1/chat/completions": ("chat-stream-raw", "chat-stream-usage-raw"),
    "/v1/completions": ("completions-stream-raw",),
    "/v1/messages": ("v1-messages-stream-raw",),
    "/v1/responses": ("v1-responses-stream-raw",),
}


@pytest.mark.parametrize("engine", ["llama-server", "vllm"])
@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in RECORDED.items() for name in names])
@given(data=st.data())
@settings(max_examples=30)
def test_whole_events_are_delivered_however_the_stream_arrives(
    engine: str, path: str, name: str, data: st.DataObject
) -> None:
    original = whole(engine, name)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(original)), min_size=1, max_size=40)))
    pieces = [original[start:end] for start, end in itertools.pairwise([0, *cuts])]
    stream, expected = Stream(path), Stream(path)
    stream.relay_pieces(pieces)
    expected.relay(b"".join(pieces))

    assert stream.client.body == expected.client.body
    unfinished = cuts[-1] - len(expected.client.body)
    assert stream.sink.sent_bytes == len(stream.client.received) + unfinished
    for one in (stream, expected):
        one.sink.transcript.read()
    assert stream.sink.transcript.text == expected.sink.transcript.text
    assert stream.sink.transcript.finish_reason == expected.sink.transcript.finish_reason


def test_an_endless_event_is_relayed_as_it_comes_and_not_resumed() -> None:
    stream = Stream()
    beginning, rest = b"data: " + b"x" * 100_000, b"y" * 1000 + b"\n\n"
    stream.relay(beginning)
    assert stream.client.body == beginning
    assert not stream.sink.has_delivered

    stream.sink.write(rest)
    stream.sink.end()

    assert stream.client.body == beginning + rest
    assert stream.client.is_done
    assert stream.sink.sent_bytes == len(stream.client.received)


def event(delta: dict[str, Any], **members: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    head = {"id": "first", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**head, "choices": [choice], **members}).encode() + b"\n\n"


def test_nothing_of_an_attempt_that_delivered_nothing_reaches_the_client() -> None:
    stream = Stream()
    stream.relay(event({"content": "lost"})[:40])
    stream.relay(b'data: {"error": {"code": 500}}\n\n')
    stream.relay(event({"content": "a"}) + b"data: [DONE]\n\n")
    stream.sink.end()
    assert stream.client.body == event({"content": "a"}) + b"data: [DONE]\n\n"


def test_a_repeated_text_is_removed_again_after_a_continuation_that_delivered_nothing() -> None:
    stream = Stream()
    stream.relay(event({"content": "a"}) + event({"content": " b"}))
    stream.sink.resume(b"")
    stream.relay(event({"content": "a b"}))
    stream.relay(event({"content": "a b"}) + event({"content": " c"}))
    assert text_of(objects(stream.client.body)) == "a b c"


def test_a_long_stream_that_cannot_be_resumed_ends_as_its_engine_ends_it() -> None:
    stream = Stream()
    events = [event({"reasoning_content": "hm"})] * 200
    stream.relay(b"".join(events))
    stream.sink.write(b"data: [DONE]\n\n")
    stream.sink.end()
    assert (stream.sink.is_cut, stream.client.is_done) == (False, True)
    assert stream.client.body == b"".join(events) + b"data: [DONE]\n\n"


def test_an_absent_error_is_no_failure() -> None:
    stream = Stream()
    stream.relay(event({"content": "a"}, error=None))
    assert stream.client.body == event({"content": "a"}, error=None)


def test_a_connection_that_lost_a_stream_is_no_longer_its_source() -> None:
    stream = Stream()
    stream.sink.source = stream  # type: ignore[assignment]  # stands for a connection
    stream.relay(event({"content": "a"}) + event({"content": " b"}))
    stream.sink.resume(b"")
    assert stream.sink.source is None
