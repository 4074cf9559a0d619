"""Streams of Anthropic's messages: recorded ones, cut at any byte and continued, and single rules."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from inference_engine_proxy_server.errors import StreamNotContinued
from inference_engine_proxy_server.resume.dialects import DIALECTS
from inference_engine_proxy_server.resume.dialects.messages import MessagesSeam, MessagesTranscript
from inference_engine_proxy_server.resume.events import split_events
from inference_engine_proxy_server.resume.rules import problem_of
from inference_engine_proxy_server.wire.framing import ChunkedBody
from recorded import recorded
from support.resumed_stream import Stream

PATH = "/v1/messages"
MESSAGES = DIALECTS[PATH]


def event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def start(**usage: int) -> bytes:
    message = {"id": "first", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": usage}
    return event("message_start", message=message)


def block(index: int = 0, kind: str = "text", **members: Any) -> bytes:
    content = {"text": ""} if kind == "text" else {"id": "t", "name": "f", "input": {}}
    return event("content_block_start", index=index, content_block={"type": kind, **content, **members})


def said(text: str, index: int = 0) -> bytes:
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})


def called(part: str, index: int) -> bytes:
    return event("content_block_delta", index=index, delta={"type": "input_json_delta", "partial_json": part})


def stop(index: int = 0) -> bytes:
    return event("content_block_stop", index=index)


def end(reason: str = "end_turn", **usage: int) -> bytes:
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)


OVER = event("message_stop")


@dataclass
class Message:
    """What Anthropic's SDK builds from a stream. It fails on events that do not follow each other.

    Attributes:
        blocks: the type and the content of each content block.
    """

    id: str = ""
    blocks: list[list[str]] = field(default_factory=list)
    is_open: list[bool] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)
    stop_reason: str | None = None
    is_over: bool = False

    @classmethod
    def of(cls, body: bytes) -> Message:
        events, rest = split_events(body)
        assert not rest
        message = cls()
        for one in events:
            if one.startswith(b":"):
                continue
            name, data = one.split(b"\n")[:2]
            members = json.loads(data.removeprefix(b"data: "))
            assert name == b"event: " + members["type"].encode()
            message.take(members)
        return message

    def take(self, members: dict[str, Any]) -> None:
        assert not self.is_over
        at = members.get("index", 0)
        match members["type"]:
            case "message_start":
                assert not self.id
                self.id, self.usage = members["message"]["id"], dict(members["message"]["usage"])
            case "content_block_start":
                assert at == len(self.blocks)
                self.blocks.append([members["content_block"]["type"], ""])
                self.is_open.append(True)
            case "content_block_delta":
                assert self.is_open[at]
                delta = members["delta"]
                self.blocks[at][1] += delta["text"] if self.blocks[at][0] == "text" else delta["partial_json"]
            case "content_block_stop":
                assert self.is_open[at]
                self.is_open[at] = False
            case "message_delta":
                assert not any(self.is_open)
                assert self.stop_reason is None
                self.stop_reason = members["delta"]["stop_reason"]
                self.usage |= members["usage"]
            case "message_stop":
                assert self.stop_reason is not None
                self.is_over = True

    @property
    def text(self) -> str:
        return "".join(content for kind, content in self.blocks if kind == "text")


def whole(engine: str) -> bytes:
    return b"".join(ChunkedBody().feed(recorded(engine, "v1-messages-stream-raw").body))


def continuation(original: bytes, delivered: str, *, echoes: bool) -> bytes:
    """What another engine sends after ``delivered``: the rest of ``original``, under an identity of its own."""
    skipped, tokens, events = "", 0, []
    for one in split_events(original)[0]:
        members = json.loads(one.split(b"\ndata: ")[1])
        text = members.get("delta", {}).get("text", "")
        if text and skipped != delivered:
            skipped += text
            continue
        if text and echoes:
            members["delta"]["text"], echoes = delivered + text, False
        tokens += bool(text)
        if members["type"] == "message_start":
            members["message"] |= {"id": "other", "usage": {"input_tokens": 99, "output_tokens": 0}}
        if members["type"] == "message_delta":
            members["usage"]["output_tokens"] = tokens
        events.append(event(members.pop("type"), **members))
    return b"".join(events)


@pytest.mark.parametrize("echoes", [False, True])
@pytest.mark.parametrize("engine", ["llama-server", "vllm"])
def test_a_message_cut_at_any_byte_is_continued_or_ends_between_two_events(engine: str, echoes: bool) -> None:
    original = whole(engine)
    expected = Message.of(original)
    checked: set[tuple[int, bool]] = set()  # delivered bytes, and whether the stream was cut inside an event
    for cut in range(len(original) + 1):
        stream = Stream(PATH)
        stream.relay(original[:cut])
        transcript = stream.sink.transcript
        transcript.read()
        delivered = stream.client.body
        assert delivered == original[: original.rfind(b"\n\n", 0, cut) + 2 if b"\n\n" in original[:cut] else 0]
        if (len(delivered), len(delivered) < cut) in checked:
            continue
        checked.add((len(delivered), len(delivered) < cut))
        assert Message.of(delivered).text == transcript.text
        if problem_of(transcript) is not None:
            continue
        if transcript.finish_reason is not None:
            stream.sink.complete()
        else:
            stream.sink.resume(b"")
            stream.relay(continuation(original, transcript.text, echoes=echoes))
            stream.sink.end()
        found = Message.of(stream.client.body)
        assert (found.text, found.stop_reason, found.is_over) == (expected.text, expected.stop_reason, True)
        assert found.id == (expected.id if delivered else "other")
        assert stream.client.is_done
        if engine == "llama-server" and delivered:
            assert found.usage == expected.usage


def joined(first: bytes, second: bytes) -> Message:
    """The message that a client builds if ``first`` breaks and ``second`` continues it."""
    stream = Stream(PATH)
    stream.relay(first)
    stream.sink.resume(b"")
    stream.relay(second)
    stream.sink.end()
    assert stream.client.is_done
    return Message.of(stream.client.body)


BEGUN = start(input_tokens=5, cache_read_input_tokens=2, output_tokens=0) + block() + said("a") + said(" b")


def test_the_open_block_is_continued_and_stopped_once() -> None:
    second = start(input_tokens=9, output_tokens=0) + block() + said(" c") + stop() + end(output_tokens=1) + OVER
    found = joined(BEGUN, second)
    assert found.blocks == [["text", "a b c"]]
    assert found.usage == {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 3}


def test_text_of_a_block_that_was_not_begun_again_continues_the_open_one() -> None:
    found = joined(
        BEGUN + stop() + block(1) + said(" c", 1), start() + said(" d") + stop() + end(output_tokens=1) + OVER
    )
    assert found.blocks == [["text", "a b"], ["text", " c d"]]


def test_a_usage_that_counts_the_prompt_at_the_end_keeps_the_first_count() -> None:
    """As vLLM reports it."""
    second = start(input_tokens=9) + block() + said(" c") + stop() + end(input_tokens=9, output_tokens=1) + OVER
    assert joined(BEGUN, second).usage["input_tokens"] == 5


@pytest.mark.parametrize("stops", [b"", stop()])
def test_a_continuation_without_text_ends_the_open_block(stops: bytes) -> None:
    """llama.cpp stops the block of the delivered text, which it has not begun."""
    found = joined(BEGUN, start() + stops + end(output_tokens=0) + OVER)
    assert found.blocks == [["text", "a b"]]
    assert found.is_over


def test_a_continuation_that_reasons_is_a_new_answer() -> None:
    with pytest.raises(StreamNotContinued):
        joined(BEGUN, start() + block(kind="thinking"))
    assert joined(start(), start() + block(kind="thinking") + stop() + end() + OVER).is_over


def test_a_tool_call_after_the_text_gets_the_next_index() -> None:
    call = block(1, "tool_use") + called('{"x":', 1) + called("1}", 1)
    second = start() + block() + said(" c") + call + stop(0) + stop(1) + end("tool_use", output_tokens=9) + OVER
    assert joined(BEGUN, second).blocks == [["text", "a b c"], ["tool_use", '{"x":1}']]


def test_a_tool_call_without_further_text_gets_the_next_index() -> None:
    """llama.cpp numbers it 0 when it begins, and stops a text block of that number and the call as number 1."""
    call = block(0, "tool_use") + called("{}", 0)
    found = joined(BEGUN, start() + call + stop(0) + stop(1) + end("tool_use", output_tokens=9) + OVER)
    assert found.blocks == [["text", "a b"], ["tool_use", "{}"]]


def test_a_stopped_block_is_followed_by_another_one() -> None:
    second = start() + block() + said(" c") + stop() + end(output_tokens=1) + OVER
    assert joined(BEGUN + stop(), second).blocks == [["text", "a b"], ["text", " c"]]


@pytest.mark.parametrize("stopped", [b"", stop()])
def test_a_block_that_an_engine_begins_twice_is_begun_once(stopped: bytes) -> None:
    """llama.cpp begins it again if its last event has text."""
    second = start() + block() + said(" c") + block() + said(" d") + stop() + end(output_tokens=2) + OVER
    found = joined(BEGUN + stopped, second)
    assert found.text == "a b c d"
    assert len(found.blocks) == (2 if stopped else 1)


def test_text_in_the_beginning_of_a_block_counts() -> None:
    transcript = MessagesTranscript()
    transcript.take(start() + block(text="a") + said(" b"))
    transcript.read()
    assert (transcript.text, transcript.text_events) == ("a b", 2)
    assert MessagesSeam(transcript, 0).rewrite(block(text=" c")) == event(
        "content_block_delta", delta={"type": "text_delta", "text": " c"}, index=0
    ).replace(b'": ', b'":').replace(b', "', b',"')


def test_a_message_is_resumed_twice() -> None:
    stream = Stream(PATH)
    stream.relay(BEGUN)
    for word in (" c", " d"):
        stream.sink.resume(b"")
        stream.relay(start() + block() + said(word))
    stream.sink.write(stop() + end(output_tokens=1) + OVER)
    stream.sink.end()
    found = Message.of(stream.client.body)
    assert found.blocks == [["text", "a b c d"]]
    assert found.usage["output_tokens"] == 4


@pytest.mark.parametrize("event_in_between", [event("ping"), b": ping\n\n"])
def test_pings_are_relayed(event_in_between: bytes) -> None:
    stream = Stream(PATH)
    stream.relay(BEGUN + event_in_between)
    stream.sink.resume(b"")
    stream.relay(start() + event_in_between + block() + said(" c"))
    assert stream.client.body.count(event_in_between) == 2
    stream.sink.transcript.read()
    assert stream.sink.transcript.problem is None


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (block(kind="thinking"), "reasoning"),
        (block(kind="redacted_thinking"), "reasoning"),
        (block(kind="tool_use"), "tool_calls"),
        (block(kind="server_tool_use"), "unknown_events"),
        (event("content_block_delta", index=0, delta={"type": "citations_delta"}), "unknown_events"),
        (event("content_block_delta", index=0, delta={"type": "signature_delta"}), "reasoning"),
        (event("something_new"), "unknown_events"),
        (b"event: x\ndata: [DONE]\n\n", "unknown_events"),
    ],
)
def test_events_that_text_cannot_continue_are_noticed(found: bytes, problem: str) -> None:
    transcript = MessagesTranscript()
    transcript.take(BEGUN + found)
    transcript.read()
    assert transcript.problem == problem


@pytest.mark.parametrize(
    ("found", "is_failure"),
    [
        (b'event: error\ndata: {"code": 500, "message": "x", "type": "server_error"}\n\n', True),
        (b'event: error\ndata: {"code": 400, "message": "x", "type": "invalid_request_error"}\n\n', False),
        (event("error", error={"type": "overloaded_error", "message": "x"}), True),
        (b'data: {"type": "error", "error": {"type": "internal_error", "message": "x"}}\n\n', True),
        (event("error", error={"type": "invalid_request_error", "message": "x"}), False),
        (said('"error" {"type": "error"}'), False),
        (b": error\n\n", False),
        (b"event: error\ndata: x\n\n", False),
    ],
)
def test_an_error_event_is_a_failure_unless_it_is_about_the_request(found: bytes, is_failure: bool) -> None:
    assert MESSAGES.is_failure(found) is is_failure


@pytest.mark.parametrize("kind", ["server_error", "unavailable_error"])
def test_the_error_that_llama_cpp_ends_a_stream_with_is_withheld(kind: str) -> None:
    stream = Stream(PATH)
    stream.relay(BEGUN)
    stream.sink.write(b'event: error\ndata: {"code":500,"message":"Compute error.","type":"%b"}\n\n' % kind.encode())
    stream.sink.end()
    assert stream.client.body == BEGUN
    assert stream.sink.is_cut


def members(**values: Any) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in values.items()}


def test_the_continuation_has_the_delivered_text_and_what_is_left_of_the_limit() -> None:
    transcript = MessagesTranscript()
    transcript.take(BEGUN)
    transcript.read()
    question = [{"role": "user", "content": "q"}]
    asked = members(model="m", max_tokens=9, system="s", stop_sequences=["x"], messages=question)
    assert json.loads(MESSAGES.continued(asked, transcript)) == {
        "model": "m", "max_tokens": 7, "system": "s", "stop_sequences": ["x"],
        "messages": [*question, {"role": "assistant", "content": "a b"}],
    }  # fmt: skip
    assert MESSAGES.tokens_left(asked, transcript.text_events) == 7
    nothing = MessagesTranscript()
    assert json.loads(MESSAGES.continued(asked, nothing))["messages"] == question


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({}, None),
        ({"tool_choice": {"type": "auto"}, "tools": [{"name": "f"}]}, None),
        ({"tool_choice": {"type": "none"}}, None),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"output_config": {"effort": "low"}}, None),
        ({"output_config": {"format": {"type": "json_schema"}}}, "structured_output"),
        ({"output_format": {"type": "json_schema"}}, "structured_output"),
        ({"messages": "q"}, "prompt_form"),
        ({"messages": []}, None),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "assistant_message"),
    ],
)
def test_rules_about_a_request(values: dict[str, Any], rule: str | None) -> None:
    assert MESSAGES.broken_rule(members(**{"messages": [{"role": "user", "content": "q"}], **values})) == rule


def test_a_seam_without_a_beginning_repeats_everything() -> None:
    events = start() + block() + said("a")
    seam = MessagesSeam(MessagesTranscript(), 0)
    assert Message.of(b"".join(map(seam.rewrite, split_events(events)[0]))) == Message.of(events)
