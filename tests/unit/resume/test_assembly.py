"""The JSON reply that is assembled from events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_engine_proxy_server.resume.assembly import Assembly
from inference_engine_proxy_server.wire.framing import ChunkedBody
from recorded import recorded

SHARED = {"created": 1, "id": "c", "model": "m", "system_fingerprint": "b1"}
USAGE = {"completion_tokens": 3, "prompt_tokens": 7, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}}
DONE = b"data: [DONE]\n\n"


def event(**members: Any) -> bytes:
    kind = "text_completion" if "text" in json.dumps(members) else "chat.completion.chunk"
    return b"data: " + json.dumps({**SHARED, "object": kind, **members}, separators=(",", ":")).encode() + b"\n\n"


def said(token: int, **delta: Any) -> bytes:
    """A chat event for the token with this number."""
    choice = {"finish_reason": None, "index": 0, "delta": delta}
    return event(choices=[choice], timings={"predicted_n": token, "predicted_ms": 1.5})


def wrote(token: int, text: str) -> bytes:
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": None}
    return event(choices=[choice], timings={"predicted_n": token})


def ended(reason: str, tokens: int = 3) -> bytes:
    last = event(choices=[{"finish_reason": reason, "index": 0, "delta": {}}])
    return last + event(choices=[], usage=USAGE, timings={"predicted_n": tokens}) + DONE


def wrote_all(reason: str, tokens: int) -> bytes:
    choice = {"text": "", "index": 0, "logprobs": None, "finish_reason": reason}
    return event(choices=[choice], usage=USAGE, timings={"predicted_n": tokens}) + DONE


def assembled(*events: bytes) -> Assembly:
    assembly = Assembly()
    for one in events:
        assembly.take(one)
    return assembly


def message(*events: bytes) -> Any:
    body = assembled(*events).finish()
    return None if body is None else json.loads(body)["choices"][0]["message"]


def test_members_have_the_order_of_llama_cpp() -> None:
    body = assembled(said(1, role="assistant", content=None), said(1, content="a"), ended("stop")).finish()
    assert body == (
        b'{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"a"}}],"created":1,'
        b'"model":"m","system_fingerprint":"b1","object":"chat.completion","usage":{"completion_tokens":3,'
        b'"prompt_tokens":7,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":2}},"id":"c",'
        b'"timings":{"predicted_n":3}}'
    )


def test_texts_stay_as_they_were_encoded() -> None:
    texts = [r"\u001f\/", "é👩", r"\ud83d\ude00\"\\"]
    pieces = [said(number, content="X").replace(b'"X"', f'"{text}"'.encode()) for number, text in enumerate(texts, 1)]
    body = assembled(*pieces, ended("length", 3)).finish()
    assert body is not None
    assert f'"content":"{"".join(texts)}"'.encode() in body


def test_events_may_be_cut_anywhere() -> None:
    stream = said(1, content="a\nb") + b":\n\n" + said(2, content="c") + ended("stop")
    whole = assembled(stream).finish()
    assert whole is not None
    for position in range(1, len(stream)):
        assert assembled(stream[:position], stream[position:]).finish() == whole


def test_a_long_stream_is_read_in_blocks() -> None:
    events = [said(number, content=f"{number} ") for number in range(1, 2001)]
    assert message(*events, ended("length", 2000))["content"] == "".join(f"{number} " for number in range(1, 2001))


def test_tool_calls_are_joined_by_their_index() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        head = {"id": f"id{index}", "type": "function"} if "name" in function else {}
        return {"index": index, **head, "function": function}

    found = message(
        said(1, tool_calls=[call(0, name="get")]),
        said(2, tool_calls=[call(0, name="get_all", arguments='{"a":')]),
        said(3, tool_calls=[call(0, arguments="1}"), call(1, name="b", arguments="{}")]),
        ended("tool_calls"),
    )
    assert found == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "get_all", "arguments": '{"a":1}'}, "id": "id0"},
            {"type": "function", "function": {"name": "b", "arguments": "{}"}, "id": "id1"},
        ],
    }


@pytest.mark.parametrize(
    ("events", "doubt"),
    [
        pytest.param([said(3, content="a"), ended("length")], None, id="text of the last token"),
        pytest.param([said(2, content="a"), ended("length")], "cut_end", id="no text of the last token"),
        pytest.param([said(1, content="a"), ended("stop")], None, id="text before a stop string"),
        pytest.param([wrote(3, "a"), wrote_all("length", 3)], None, id="text of the last token, completion"),
        pytest.param([wrote(2, "a"), wrote(3, ""), wrote_all("length", 3)], "cut_end", id="part of a stop string"),
        pytest.param([wrote(2, "a"), wrote(3, ""), wrote_all("stop", 3)], None, id="end of the answer"),
        pytest.param([wrote(2, "a"), wrote_all("stop", 3)], "cut_end", id="end inside a character"),
        pytest.param([ended("stop", 1)], None, id="only the end"),
        pytest.param([ended("stop", 2)], "empty_message", id="marks only"),
        pytest.param([ended("length", 1)], "empty_message", id="part of a mark"),
        pytest.param([said(1, reasoning_content="a"), ended("stop")], None, id="reasoning only"),
        pytest.param([said(1, content="a", novelty=1), ended("stop")], "unknown_members", id="unknown delta"),
        pytest.param([event(choices=[], novelty=1), ended("stop")], "unknown_members", id="unknown member"),
        pytest.param(
            [event(choices=[{"index": 1, "finish_reason": None}]), ended("stop")], "unknown_members", id="second"
        ),
        pytest.param([said(1, content=5), ended("stop")], "unknown_members", id="no text"),
        pytest.param([b"data: nonsense\n\n", ended("stop")], "unknown_members", id="no JSON"),
    ],
)
def test_what_a_stream_may_not_show_is_a_doubt(events: list[bytes], doubt: str | None) -> None:
    assembly = assembled(*events)
    assert (assembly.finish() is None) is (doubt is not None)
    assert assembly.doubt == doubt


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_an_incomplete_stream_is_no_reply(left_out: int) -> None:
    events = [said(1, content="a"), *(piece + b"\n\n" for piece in ended("stop").split(b"\n\n")[:-1])]
    del events[left_out + 1]
    assembly = assembled(*events)
    assert assembly.finish() is None
    assert assembly.doubt is None


def test_an_error_is_kept_as_it_came() -> None:
    assembly = assembled(said(1, content="a"), b'data: {"error":{"code":500}}\n\n')
    assert assembly.finish() is None
    assert (assembly.failure, assembly.doubt) == (b'{"error":{"code":500}}', None)


def test_an_answer_beyond_the_limit_is_dropped() -> None:
    text = "x" * 1_000_000
    assembly = assembled(*(said(number, content=text) for number in range(1, 20)), ended("length", 19))
    assert assembly.finish() is None
    assert assembly.doubt == "long_answer"


@pytest.mark.parametrize(
    ("stream", "reply"), [("chat-stream-usage-raw", "chat-nonstream"), ("completions-stream-raw", "completions")]
)
def test_recorded_streams_give_the_form_of_recorded_replies(stream: str, reply: str) -> None:
    events = b"".join(ChunkedBody().feed(recorded("llama-server", stream).body))
    assembly = assembled(*(part + b"\n\n" for part in events.split(b"\n\n")[:-1]))
    body = assembly.finish()
    if body is None:  # recorded without timings of each token
        assert assembly.doubt == "cut_end"
        assembly.doubt = None
        body = assembly._body("length")  # noqa: SLF001
    own = json.loads(recorded("llama-server", reply).body)
    ours = json.loads(body)
    assert _form(ours) == _form(own)


def _form(value: Any) -> Any:
    """The names of members, in their order, and the types of values."""
    if isinstance(value, dict):
        return [(name, _form(member)) for name, member in value.items()]
    return [_form(item) for item in value] if isinstance(value, list) else type(value)
