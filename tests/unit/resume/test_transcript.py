"""A transcript keeps little more than the delivered text."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from inference_engine_proxy_server.resume.dialects.completions import CompletionsTranscript
from inference_engine_proxy_server.resume.dialects.messages import MessagesTranscript
from inference_engine_proxy_server.resume.dialects.responses_transcript import ResponsesTranscript
from inference_engine_proxy_server.resume.transcript import MOST_TEXT_BYTES, Transcript

RAW_BYTES = 4 * 1024
KIBIBYTE = 1024


def event(content: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    members = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(members).encode() + b"\n\n"


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_transcript_keeps_the_text_and_the_latest_events(size: int) -> None:
    """However short the tokens are."""
    token = event("x" * size)
    tracemalloc.start()
    transcript = CompletionsTranscript()
    for _ in range(64 * KIBIBYTE // size):
        transcript.take(bytes(bytearray(token)))  # each event is an object of its own, as it is when it has arrived
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    transcript.read()
    assert len(transcript.text) == 64 * KIBIBYTE // size * size
    assert kept < 2 * 64 * KIBIBYTE + 1.5 * RAW_BYTES


def test_a_transcript_that_is_too_long_keeps_no_text() -> None:
    transcript = CompletionsTranscript()
    while transcript.problem is None:
        assert len(transcript.text) <= MOST_TEXT_BYTES
        transcript.take(event("x" * 1000))
    assert (transcript.problem, transcript.text) == ("long_text", "")


CHAT = 'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"%s"}}],"created":%d,"id":"a"}\n\n'
LEGACY = (
    'data: {"id":"a","choices":[{"index":0,"text":"%s","logprobs":null,"finish_reason":null}],"created":%d}\r\n\r\n'
)
MESSAGE = (
    "event: content_block_delta\n"
    'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"},"n":%d}\n\n'
)
RESPONSE = (
    "event: response.output_text.delta\n"
    'data: {"type":"response.output_text.delta","delta":"%s","item_id":"a","sequence_number":%d}\n\n'
)
TEXTS = ["a", "b", "", '\\"', "\\\\", "\u00e9", "\\ud83d\\ude00", "c", '\\",\\"', "error", " ", "\\n"]
FORMS = [
    (CompletionsTranscript, CHAT),
    (CompletionsTranscript, LEGACY),
    (MessagesTranscript, MESSAGE),
    (ResponsesTranscript, RESPONSE),
]


def state_of(transcript: Transcript) -> dict[str, object]:
    names = [name for kind in type(transcript).__mro__ for name in getattr(kind, "__slots__", ()) if name[0] != "_"]
    return {name: getattr(transcript, name) for name in names} | {"text": transcript.text}


def read_together(kind: type[Transcript], events: list[bytes]) -> dict[str, object]:
    transcript = kind()
    transcript.take(b"".join(events))
    transcript.read()
    return state_of(transcript)


def read_one_by_one(kind: type[Transcript], events: list[bytes]) -> dict[str, object]:
    """As :func:`read_together`, but no event follows one of the same form."""
    return read_together(kind, [event + b": comment\n\n" for event in events])


@pytest.mark.parametrize(("kind", "form"), FORMS)
@pytest.mark.parametrize("events_a_second", [1, 5, 1000])
def test_events_that_differ_only_in_their_text_are_read_as_each_alone(
    kind: type[Transcript], form: str, events_a_second: int
) -> None:
    texts = TEXTS * 3
    events = [(form % (text, number // events_a_second)).encode() for number, text in enumerate(texts)]
    together = read_together(kind, events)
    assert together == read_one_by_one(kind, events)
    assert together["text_events"] == sum(map(bool, texts))
    assert together["problem"] is None


@pytest.mark.parametrize(("kind", "form"), FORMS)
@pytest.mark.parametrize("inside", ['a","b', 'a","b":"c', 'a","content":"c', 'a"', "\\", "\n", "\\x", "\x01", '"},{"'])
def test_an_event_of_the_same_form_whose_text_is_no_string_is_read_alone(
    kind: type[Transcript], form: str, inside: str
) -> None:
    events = [(form % (text, 1)).encode() for text in ["a", "b", inside, "c"]]
    assert read_together(kind, events) == read_one_by_one(kind, events)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_an_event_in_which_both_parts_of_the_form_overlap_is_read_alone(kind: type[Transcript], form: str) -> None:
    events = [(form % (text, 1)).encode() for text in ["a", "b", "c"]]
    before, after = form.split("%s")
    events.append(((before + after[1:]) % 1).encode())
    together = read_together(kind, events)
    assert together == read_one_by_one(kind, events)
    assert together["problem"] == "unknown_events"


def test_events_of_the_same_form_keep_what_is_not_their_text() -> None:
    """Each of these events ends the answer, or shows a tool call."""
    for member, problem in [
        ('"finish_reason":"stop"', None),
        ('"delta":{"content":"a","tool_calls":[1]}', "tool_calls"),
    ]:
        event = b'data: {"choices":[{"index":0,"text":"a",%b}]}\n\n' % member.encode()
        together = read_together(CompletionsTranscript, [event, event, event])
        assert together == read_one_by_one(CompletionsTranscript, [event, event, event])
        assert together["problem"] == problem


def test_events_with_a_second_text_are_read_alone() -> None:
    event = b'data: {"choices":[{"index":0,"text":"a"},{"index":0,"text":"b"}]}\n\n'
    assert read_together(CompletionsTranscript, [event] * 3)["text"] == "ababab"
