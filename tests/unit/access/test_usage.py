"""Tokens of a request, from recorded replies with their chunk framing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded
from inference_engine_proxy_server.access.usage import tokens_used

TAIL_BYTES = 16 * 1024  # the part of a reply that is kept
FOLDER = Path(recorded.__file__).parent


def reply(name: str) -> tuple[bytes, bytes]:
    head, _, body = (FOLDER / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    return head, body


def used(name: str, body_bytes: int = 0) -> int:
    head, body = reply(name)
    return tokens_used(body_bytes, body[-TAIL_BYTES:], len(head) + 4 + len(body))


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("llama-server/chat-nonstream", 30 + 24),
        ("llama-server/chat-nonstream-2nd-cached", 30 + 24),
        ("llama-server/chat-stream-usage-raw", 30 + 24),
        ("llama-server/chat-stream-raw", 25 + 5 + 24),
        ("llama-server/chat-stream-timings-progress-raw", 25 + 5 + 24),
        ("llama-server/completions", 6 + 8),
        ("llama-server/completions-stream-raw", 6 + 4),
        ("llama-server/native-completion", 1 + 5 + 4),
        ("llama-server/v1-messages", 26 + 12),
        ("llama-server/v1-messages-stream-raw", 21 + 5 + 6),
        ("llama-server/v1-responses", 26 + 6),
        ("llama-server/v1-responses-stream-raw", 26 + 4),
        ("llama-server/embeddings", 12),
        ("vllm/chat-nonstream", 38 + 12),
        ("vllm/chat-stream-usage-raw", 38 + 12),
        ("vllm/chat-stream-continuous-usage-raw", 38 + 12),
        ("vllm/completions", 3 + 5),
        ("vllm/v1-messages", 24 + 6),
        ("vllm/v1-messages-stream-raw", 24 + 4),
        ("vllm/v1-responses", 24 + 4),
        ("vllm/v1-responses-stream-raw", 24 + 4),
    ],
)
@pytest.mark.parametrize("body_bytes", [0, 10**6])
def test_reported_tokens_count(name: str, tokens: int, body_bytes: int) -> None:
    assert used(name, body_bytes) == tokens


@pytest.mark.parametrize(
    ("name", "body_bytes", "tokens"),
    [
        pytest.param("vllm/chat-stream-raw", 170, 38 + 12, id="chat"),
        pytest.param("vllm/completions-stream-raw", 60, 3 + 5, id="completion"),
    ],
)
def test_tokens_are_estimated_when_the_engine_reports_none(name: str, body_bytes: int, tokens: int) -> None:
    assert b"_tokens" not in reply(name)[1]

    assert tokens * 0.6 <= used(name, body_bytes) <= tokens * 2.5


def test_a_long_stream_is_estimated_from_the_length_of_its_last_events() -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
    stream = b"".join(event % (b"x" * (number % 9)) for number in range(5000))

    assert tokens_used(0, stream[-TAIL_BYTES:], len(stream)) == pytest.approx(5000, rel=0.01)


@pytest.mark.parametrize("name", ["llama-server/v1-messages-stream-raw", "vllm/v1-messages-stream-raw"])
def test_the_prompt_is_estimated_when_only_the_beginning_of_a_long_stream_reported_it(name: str) -> None:
    body = reply(name)[1]
    tail = re.sub(rb'"input_tokens":\d+,', b"", body.partition(b"event: content_block_delta")[2])
    [answer] = re.findall(rb'"output_tokens":(\d+)', tail)

    assert tokens_used(40_000, tail, 10**6) == 10_000 + int(answer)


def test_an_interrupted_stream_is_estimated_as_far_as_it_was_sent() -> None:
    body = reply("llama-server/v1-messages-stream-raw")[1]
    begun = body[: body.index(b"event: content_block_stop")].replace(b',"output_tokens":0', b"")

    assert 21 + 5 + 5 <= tokens_used(10**6, begun, len(begun)) <= 21 + 5 + 12


def test_generated_text_that_looks_like_usage_is_ignored() -> None:
    said = b'{"choices":[{"message":{"content":"{\\"total_tokens\\": 0, \\"input_tokens\\": 0}"}}]}'

    assert tokens_used(400, said, 400) == 100 + 100


def test_a_binary_answer_is_estimated_from_its_length() -> None:
    assert tokens_used(400, b"\x00" * 1000, 4000) == 100 + 1000


@given(body_bytes=st.integers(0, 2**40), tail=st.binary(min_size=1, max_size=300), more=st.integers(0, 2**40))
def test_any_reply_gives_a_number_of_tokens(body_bytes: int, tail: bytes, more: int) -> None:
    tokens = tokens_used(body_bytes, tail, len(tail) + more)

    assert isinstance(tokens, int)
    assert tokens >= 0
