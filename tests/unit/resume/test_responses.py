"""Streams of OpenAI's responses: recorded ones, cut at any byte and continued, and single rules."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from inference_engine_proxy_server.errors import StreamNotContinued
from inference_engine_proxy_server.resume.dialects import DIALECTS
from inference_engine_proxy_server.resume.dialects.responses_transcript import ResponsesTranscript
from inference_engine_proxy_server.resume.events import split_events
from inference_engine_proxy_server.resume.rules import problem_of
from inference_engine_proxy_server.wire.framing import ChunkedBody
from recorded import recorded
from support.resumed_stream import Stream

PATH = "/v1/responses"
RESPONSES = DIALECTS[PATH]


def event(kind: str, **members: Any) -> bytes:
    return f"event: response.{kind}\ndata: {json.dumps({'type': f'response.{kind}', **members})}\n\n".encode()


def objects(body: bytes) -> list[dict[str, Any]]:
    """The data of whole events, each with its type as its name; fails on anything else."""
    events, rest = split_events(body)
    assert not rest
    found = []
    for one in events:
        if not one.startswith(b":"):
            name, data = one.split(b"\n")[:2]
            found.append(json.loads(data.removeprefix(b"data: ")))
            assert name == b"event: " + found[-1]["type"].encode()
    return found


def text_of(found: list[dict[str, Any]]) -> str:
    return "".join(one["delta"] for one in found if one["type"] == "response.output_text.delta")


def whole(engine: str) -> bytes:
    return b"".join(ChunkedBody().feed(recorded(engine, "v1-responses-stream-raw").body))


def continuation(original: bytes, delivered: str, *, repeats: bool) -> bytes:
    """What another engine sends after ``delivered``: the rest of ``original``, under an identity of its own.

    Args:
        repeats: its last events have the whole text, as those of llama.cpp; otherwise only the rest, as those of vLLM.
    """
    skipped, events = "", []
    whole_text = text_of(objects(original))
    for one in objects(original):
        if one["type"] == "response.output_text.delta" and skipped != delivered:
            skipped += one["delta"]
            continue
        data = json.dumps(one).replace('"msg_', '"msg_other').replace('"resp_', '"resp_other')
        said = json.dumps(whole_text)
        data = data if repeats else data.replace(said, json.dumps(whole_text.removeprefix(delivered)))
        events.append(f"event: {one['type']}\ndata: {data}\n\n".encode())
    return b"".join(events)


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("engine", ["llama-server", "vllm"])
def test_a_response_cut_at_any_byte_is_continued_or_ends_between_two_events(engine: str, repeats: bool) -> None:
    original = whole(engine)
    expected = objects(original)
    checked: set[tuple[int, bool]] = set()  # delivered bytes, and whether the stream was cut inside an event
    for cut in range(len(original) + 1):
        stream = Stream(PATH)
        stream.relay(original[:cut])
        transcript = stream.sink.transcript
        assert isinstance(transcript, ResponsesTranscript)
        transcript.read()
        delivered = stream.client.body
        assert delivered == original[: original.rfind(b"\n\n", 0, cut) + 2 if b"\n\n" in original[:cut] else 0]
        if (len(delivered), len(delivered) < cut) in checked:
            continue
        checked.add((len(delivered), len(delivered) < cut))
        assert text_of(objects(delivered)) == transcript.text
        if problem_of(transcript) is not None or transcript.finish_reason is not None:
            continue
        has_message = bool(transcript.item_id)
        stream.sink.resume(b"")
        stream.relay(continuation(original, transcript.text, repeats=repeats))
        stream.sink.end()
        assert stream.client.is_done
        found = objects(stream.client.body)
        assert [one["type"] for one in found] == [one["type"] for one in expected]
        assert text_of(found) == text_of(expected)
        for name in ("sequence_number", "output_index", "content_index"):
            assert [one.get(name) for one in found] == [one.get(name) for one in expected]
        assert len({one["response"]["id"] for one in found if "response" in one}) == 1
        begun = [one["item"]["id"] for one in found if one["type"] == "response.output_item.added"]
        assert [item["id"] for item in found[-1]["response"]["output"]] == begun
        if has_message:
            for kind in ("output_text.done", "content_part.done", "output_item.done"):
                [ours] = [one for one in found if one["type"] == f"response.{kind}"]
                said = json.dumps(ours)
                assert "other" not in said
                assert json.dumps(text_of(expected)) in said
            response, before = found[-1]["response"], expected[-1]["response"]
            assert response["id"] == before["id"]
            [item], [item_before] = response["output"], before["output"]
            assert (item["id"], item["content"][0]["text"]) == (item_before["id"], text_of(expected))


RESPONSE = {"id": "resp_1", "created_at": 1, "max_output_tokens": 9}
TEXT = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
BEGUN = (
    event("created", response=RESPONSE, sequence_number=0)
    + event("output_item.added", output_index=0, item={"type": "message", "id": "msg_1"}, sequence_number=1)
    + event("content_part.added", **TEXT, part={"type": "output_text", "text": ""}, sequence_number=2)
    + event("output_text.delta", **TEXT, delta="a", sequence_number=3)
    + event("output_text.delta", **TEXT, delta=" b", sequence_number=4)
)
OTHER = {"item_id": "msg_2", "output_index": 0, "content_index": 0}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
MESSAGE = {"type": "message", "id": "msg_2", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}
CREATED = event("created", response={"id": "resp_2", "created_at": 2, "max_output_tokens": 7})
ADDED = event("output_item.added", output_index=0, item={"type": "message", "id": "msg_2"}) + event(
    "content_part.added", **OTHER, part={"type": "output_text", "text": ""}
)


def delta(text: str) -> bytes:
    return event("output_text.delta", **OTHER, delta=text)


def done(*output: dict[str, Any], **members: Any) -> bytes:
    usage = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12, "input_tokens_details": {"cached_tokens": 8}}
    response = {"id": "resp_2", "created_at": 2, "max_output_tokens": 7, "output": list(output), "usage": usage}
    return event("completed", response=response, **members)


def joined(second: bytes, first: bytes = BEGUN) -> list[dict[str, Any]]:
    """The events that a client gets if ``first`` breaks and ``second`` continues it."""
    stream = Stream(PATH)
    stream.relay(first)
    stream.sink.resume(b"")
    stream.relay(second)
    stream.sink.end()
    assert stream.client.is_done
    return objects(stream.client.body)[first.count(b"\n\n") :]


ENDS = ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]


def test_the_message_is_continued_and_keeps_its_place() -> None:
    found = joined(CREATED + ADDED + delta(" c") + done(MESSAGE))
    assert [one["type"] for one in found] == ["response.output_text.delta", *ENDS]
    assert [one["sequence_number"] for one in found] == [5, 6, 7, 8, 9]
    assert found[0] == {"type": "response.output_text.delta", **TEXT, "delta": " c", "sequence_number": 5}
    assert {one.get("item_id") or one.get("item", {}).get("id") for one in found[:-1]} == {"msg_1"}
    response = found[-1]["response"]
    assert {name: response[name] for name in RESPONSE} == RESPONSE
    assert response["output"][0]["content"][0]["text"] == "a b c"
    assert response["usage"] == {
        "input_tokens": 7, "output_tokens": 5, "total_tokens": 12, "input_tokens_details": {"cached_tokens": 7},
    }  # fmt: skip


def test_a_continuation_without_text_ends_the_message() -> None:
    """vLLM begins no message then."""
    found = joined(CREATED + done())
    assert [one["type"] for one in found] == ENDS
    assert [item["id"] for item in found[-1]["response"]["output"]] == ["msg_1"]


def test_a_message_that_was_not_begun_again_is_the_delivered_one() -> None:
    """llama.cpp ends the message of the delivered text even if its continuation has no text."""
    ends = event("output_text.done", item_id="msg_2", text="a b") + event("output_item.done", item=MESSAGE)
    found = joined(CREATED + ends + done(MESSAGE))
    assert [one["type"] for one in found] == ENDS
    assert [item["id"] for item in found[-1]["response"]["output"]] == ["msg_1"]


def test_a_continuation_that_reasons_is_a_new_answer() -> None:
    with pytest.raises(StreamNotContinued):
        joined(CREATED + event("output_item.added", output_index=0, item={"type": "reasoning", "id": "rs_2"}))


@pytest.mark.parametrize("text", [b"", ADDED + delta(" c")])
def test_a_tool_call_follows_the_message(text: bytes) -> None:
    index = 1 if text else 0
    call = event("output_item.added", output_index=index, item=CALL) + event(
        "output_item.done", output_index=index, item=CALL
    )
    found = joined(CREATED + text + call + done(CALL))
    kinds = [(one["type"], one.get("output_index")) for one in found if one["type"].startswith("response.output_item")]
    assert kinds == [
        ("response.output_item.done", 0), ("response.output_item.added", 1), ("response.output_item.done", 1),
    ]  # fmt: skip
    assert [item["id"] for item in found[-1]["response"]["output"]] == ["msg_1", "fc_1"]


def test_a_second_message_remains_one() -> None:
    other = event("output_item.added", output_index=1, item={"type": "message", "id": "msg_3"})
    more = event("output_text.delta", item_id="msg_3", output_index=1, content_index=0, delta="new")
    found = joined(CREATED + ADDED + delta(" c") + other + more + done(MESSAGE, {**MESSAGE, "id": "msg_3"}))
    assert [one["item_id"] for one in found if one["type"] == "response.output_text.delta"] == ["msg_1", "msg_3"]
    assert [item["id"] for item in found[-1]["response"]["output"]] == ["msg_1", "msg_3"]


def test_a_repeated_text_is_removed() -> None:
    assert text_of(joined(CREATED + ADDED + delta("a b c") + done(MESSAGE))) == " c"
    assert text_of(joined(CREATED + ADDED + delta("a b") + delta("d") + done(MESSAGE))) == "d"


def test_a_part_that_was_not_delivered_is_begun() -> None:
    first = b"\n\n".join(BEGUN.split(b"\n\n")[:2]) + b"\n\n"
    found = joined(CREATED + ADDED + delta("a") + done(MESSAGE), first)
    assert [one["type"] for one in found] == ["response.content_part.added", "response.output_text.delta", *ENDS]
    assert {(one["item_id"], one["content_index"]) for one in found[:4]} == {("msg_1", 0)}


def test_the_timings_cover_the_whole_response() -> None:
    timings = {"cache_n": 8, "prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 3, "predicted_ms": 10.0}
    found = joined(CREATED + ADDED + delta(" c") + done(MESSAGE, timings=timings))
    assert found[-1]["timings"]["predicted_n"] == 5


@pytest.mark.parametrize("between", [b": ping\n\n", b'event: keepalive\ndata: {"type": "keepalive"}\n\n'])
def test_keep_alives_are_relayed(between: bytes) -> None:
    stream = Stream(PATH)
    stream.relay(BEGUN + between)
    stream.sink.resume(b"")
    stream.relay(CREATED + between)
    assert stream.client.body.count(between.split(b"\n")[0]) == 2
    stream.sink.transcript.read()
    assert stream.sink.transcript.problem is None


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (event("output_item.added", item={"type": "reasoning", "id": "r"}), "reasoning"),
        (event("reasoning_text.delta", delta="hm"), "reasoning"),
        (event("output_item.added", item=CALL), "tool_calls"),
        (event("function_call_arguments.delta", delta="{"), "tool_calls"),
        (event("output_item.added", item={"type": "message", "id": "msg_3"}), "unknown_events"),
        (event("content_part.added", **TEXT, part={"type": "refusal"}), "unknown_events"),
        (event("content_part.added", **TEXT, part={"type": "output_text"}), "unknown_events"),
        (event("output_text.annotation.added", **TEXT, annotation={}), "unknown_events"),
        (b"data: [DONE]\n\n", "unknown_events"),
    ],
)
def test_events_that_text_cannot_continue_are_noticed(found: bytes, problem: str) -> None:
    transcript = ResponsesTranscript()
    transcript.take(BEGUN + found)
    transcript.read()
    assert transcript.problem == problem


@pytest.mark.parametrize(
    ("found", "is_failure"),
    [
        (b'data: {"error": {"code": 500, "message": "x", "type": "server_error"}}\n\n', True),
        (b'data: {"error": {"code": 400, "message": "x", "type": "invalid_request_error"}}\n\n', False),
        (event("failed", response={"error": {"code": "server_error", "message": "x"}}), True),
        (event("failed", response={"error": {"code": "invalid_prompt", "message": "x"}}), False),
        (event("failed", response={"error": None}), True),
        (b'event: error\ndata: {"type": "error", "code": "server_error", "message": "x"}\n\n', True),
        (event("created", response={"error": None}), False),
        (event("output_text.delta", delta='"error"'), False),
        (b": error\n\n", False),
        (b"data: x\n\n", False),
    ],
)
def test_an_error_event_is_a_failure_unless_it_is_about_the_request(found: bytes, is_failure: bool) -> None:
    assert RESPONSES.is_failure(found) is is_failure


@pytest.mark.parametrize("last", ["completed", "incomplete"])
def test_the_last_event_ends_the_response(last: str) -> None:
    transcript = ResponsesTranscript()
    transcript.take(BEGUN + event(last, response=RESPONSE))
    transcript.read()
    assert (transcript.finish_reason, transcript.has_usage, transcript.is_done) == ("stop", True, True)
    assert transcript.problem is None


def members(**values: Any) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in values.items()}


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({}, None),
        ({"store": False, "include": ["reasoning.encrypted_content"]}, None),
        ({"store": True}, "stored_state"),
        ({"background": True}, "stored_state"),
        ({"conversation": "c"}, "stored_state"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, None),
        ({"grammar": "root ::= x"}, "structured_output"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": "auto", "tools": [{"type": "function", "name": "f"}]}, None),
        ({"input": None}, "prompt_form"),
        ({"input": [{"role": "user", "content": "q"}]}, None),
        ({"input": [CALL, {"type": "function_call_output", "call_id": "c", "output": "x"}]}, None),
        ({"input": [CALL]}, "assistant_message"),
        ({"input": [MESSAGE]}, "assistant_message"),
        ({"continue_final_message": True}, "assistant_message"),
        ({"include_reasoning": True}, None),
    ],
)
def test_rules_about_a_request(values: dict[str, Any], rule: str | None) -> None:
    assert RESPONSES.broken_rule(members(**{"input": "q", **values})) == rule


def test_a_list_of_items_is_extended() -> None:
    transcript = ResponsesTranscript()
    transcript.take(BEGUN)
    transcript.read()
    items = [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]
    body = json.loads(RESPONSES.continued(members(input=items, max_output_tokens=9), transcript))
    assert body["input"][:1] == items
    assert (body["input"][1]["id"], body["max_output_tokens"]) == ("msg_1", 7)
    asked = members(input=items)
    assert json.loads(RESPONSES.continued(asked, ResponsesTranscript())) == {"input": items}
