"""Token counts and timings, from recorded replies with their chunk framing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded
from inference_engine_proxy_server.backends.reply_facts import ReplyFacts, read_facts, read_tokens, says_its_end

FOLDER = Path(recorded.__file__).parent


def body_of(name: str) -> bytes:
    return (FOLDER / f"{name}.http").read_bytes().partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("llama-server/chat-nonstream", ReplyFacts(30, 0, 24, 30, 111.918, 264.722)),
        ("llama-server/chat-nonstream-2nd-cached", ReplyFacts(30, 25, 24, 5, 23.061, 255.05)),
        ("llama-server/chat-stream-raw", ReplyFacts(30, 25, 24, 5, 29.556, 258.932)),
        ("llama-server/chat-stream-usage-raw", ReplyFacts(30, 25, 24, 5, 23.195, 260.582)),
        ("llama-server/chat-stream-timings-progress-raw", ReplyFacts(30, 25, 24, 5, 24.277, 254.337)),
        ("llama-server/completions-stream-raw", ReplyFacts(6, 1, 4, 5, 23.219, 33.051)),
        ("llama-server/native-completion", ReplyFacts(6, 1, 4, 5, 23.459, 33.232)),
        ("llama-server/v1-messages", ReplyFacts(26, 0, 12)),
        ("llama-server/v1-messages-stream-raw", ReplyFacts(26, 21, 6)),
        ("llama-server/v1-responses", ReplyFacts(26, 21, 6)),
        ("llama-server/v1-responses-stream-raw", ReplyFacts(26, 21, 4, 5, 24.024, 33.624)),
        ("llama-server/embeddings", ReplyFacts(12, None, 0)),
        ("llama-server/health-ready", ReplyFacts()),
        ("vllm/chat-nonstream", ReplyFacts(38, None, 12)),
        ("vllm/chat-stream-usage-raw", ReplyFacts(38, None, 12)),
        ("vllm/chat-stream-continuous-usage-raw", ReplyFacts(38, None, 12)),
        ("vllm/chat-stream-raw", ReplyFacts()),
        ("vllm/v1-messages", ReplyFacts(24, None, 6)),
        ("vllm/v1-messages-stream-raw", ReplyFacts(24, None, 4)),
        ("vllm/v1-responses", ReplyFacts(24, 0, 4)),
    ],
)
def test_recorded_replies_are_understood(name: str, facts: ReplyFacts) -> None:
    assert read_facts(body_of(name)) == facts
    assert read_tokens(body_of(name)) == facts[:3]


@pytest.mark.parametrize(
    ("reply", "facts"),
    [
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}', (9, 8, 2)),
        (b'{"usage" : {"prompt_tokens":9,"prompt_tokens_details":null,"completion_tokens":2}}', (9, None, 2)),
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":2},"x":1}\n\ndata: {"usage":null}', (9, None, 2)),
        (b'{"usage":{"total_tokens":9}}', (9, None, 0)),
        (b'{"usage":{"input_tokens":2,"cache_read_input_tokens":3,"cache_creation_input_tokens":4}}', (9, 3, None)),
        (b'{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":3},"output_tokens":1}}', (9, 3, 1)),
        (b'{"usage":{"prompt_tokens":-1}}', (None, None, None)),
        (b'{"usage":{"prompt_tokens":"9"}}', (None, None, None)),
        (b'{"usage":{"prompt_tok', (None, None, None)),
        (b'{"usage":7}', (None, None, None)),
        (b'{"content":"{\\"usage\\":{\\"prompt_tokens\\":9}}"}', (None, None, None)),
        (b'{"timings":{"prompt_n":9}}', (None, None, None)),
        (b'"usage":' + b"{" * 100_000, (None, None, None)),
        (b"", (None, None, None)),
    ],
)  # fmt: skip
def test_missing_numbers_stay_none(reply: bytes, facts: tuple[int | None, int | None, int | None]) -> None:
    assert read_facts(reply) == ReplyFacts(*facts)


def test_an_old_llama_server_reports_no_cached_tokens() -> None:
    timings = b'{"timings":{"prompt_n":9,"prompt_ms":2.5,"predicted_n":3,"predicted_ms":4}}'
    assert read_facts(timings) == ReplyFacts(None, None, 3, 9, 2.5, 4.0)


def test_the_prompt_tokens_of_a_long_stream_come_from_its_beginning() -> None:
    body = body_of("llama-server/v1-messages-stream-raw")
    assert read_facts(body[:700] + b"data: {}\n\n" * 100 + body[-300:]) == ReplyFacts(26, 21, 6)
    assert read_facts(body[-300:]) == ReplyFacts(None, None, 6)


@given(st.binary(max_size=300))
def test_no_reply_raises(reply: bytes) -> None:
    for start in (b"", b'"usage":{', b'"timings": {"prompt_n":'):
        assert isinstance(read_facts(start + reply), ReplyFacts)


@pytest.mark.parametrize(
    ("reply", "is_over"),
    [
        (b'data: {"choices": []}\n\ndata: [DONE]\n\n', True),
        (b"e\r\ndata: [DONE]\n\n\r\n", True),
        (b'event: message_stop\ndata: {"type": "message_stop"}\n\n', True),
        (b"event: response.completed\r\ndata: {}\r\n\r\n", True),
        (b'data: {"choices": [{"delta": {"content": "\\ndata: [DONE]\\n"}}]}\n\n', False),
        (b'event: message_start\ndata: {"message": {"usage": {"output_tokens": 1}}}\n\n', False),
        (b'{"usage": {}}', False),
    ],
)
def test_the_final_event_of_a_stream_is_recognized(reply: bytes, is_over: bool) -> None:
    assert says_its_end(reply) is is_over


_REPORTS = st.sampled_from(
    [
        b'"usage":{"prompt_tokens":9,"completion_tokens":2}',
        b'"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}',
        b'"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":null}',
        b'"usage":{"completion_tokens":2,"prompt_tokens_details":{"a":{"b":{}},"cached_tokens":4},"prompt_tokens":9}',
        b'"usage" : {"prompt_tokens":9, "completion_tokens":2}',
        b'"usage":{"input_tokens":9,"output_tokens":1,"cache_read_input_tokens":3}',
        b'"usage":{"output_tokens":7}',
        b'"usage":{"total_tokens":9}',
        b'"usage":{"type":"string"}',
        b'"usage":{"prompt_tokens":-1}',
        b'"usage":{"prompt_tokens":9',
        b'"usage":null',
        b'"usage":"}{"',
        b'"timings":{"cache_n":3,"prompt_n":5,"prompt_ms":1.5,"predicted_n":6,"predicted_ms":2.5}',
        b'"timings":{"prompt_n":5,"prompt_ms":1.5,"predicted_n":6,"predicted_ms":2.5}',
        b'"timings":{"cache_n":3}',
        b'"prompt_eval_count":5,"eval_count":6',
        b'"text":"a \\"usage\\":{} b"',
    ]
)


@given(st.lists(_REPORTS, max_size=4))
def test_the_quick_reader_of_tokens_agrees_with_the_thorough_one(reports: list[bytes]) -> None:
    reply = b"{" + b"},\ndata: {".join(reports) + b"}"
    assert read_tokens(reply) == read_facts(reply)[:3]


def test_of_a_long_reply_only_the_ends_are_read() -> None:
    usage = b'"usage":{"prompt_tokens":9,"completion_tokens":2}'
    text = b'"text":"%b"' % (b"x" * 100_000)
    assert read_tokens(b"{%b,%b}" % (usage, text)) == read_tokens(b"{%b,%b}" % (text, usage)) == (9, None, 2)
    assert read_tokens(b"{%b,%b,%b}" % (text, usage, text)) == (None, None, None)
