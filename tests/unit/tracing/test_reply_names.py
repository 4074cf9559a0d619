"""What replies of real engines say of themselves."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.tracing.reply_names import ReplyNames, read_names
from recorded import recorded


@pytest.mark.parametrize(
    ("file", "id_prefix", "reasons"),
    [
        ("llama-server/chat-nonstream", "chatcmpl-", ("length",)),
        ("llama-server/chat-stream-raw", "chatcmpl-", ("length",)),
        ("llama-server/completions", "chatcmpl-", ("length",)),
        ("llama-server/v1-messages", "chatcmpl-", ("max_tokens",)),
        ("llama-server/v1-messages-stream-raw", "chatcmpl-", ("max_tokens",)),
        ("llama-server/v1-responses", "resp_", ()),
        ("llama-server/v1-responses-stream-raw", "resp_", ()),
        ("vllm/chat-nonstream", "chatcmpl-", ("length",)),
        ("vllm/chat-stream-usage-raw", "chatcmpl-", ("length",)),
        ("vllm/completions-stream-raw", "cmpl-", ("length",)),
        ("vllm/v1-messages", "chatcmpl-", ("max_tokens",)),
        ("vllm/v1-responses", "resp_", ()),
        ("vllm/v1-responses-stream-raw", "resp_", ()),
    ],
)
def test_id_and_reasons_of_recorded_replies(file: str, id_prefix: str, reasons: tuple[str, ...]) -> None:
    engine, name = file.split("/")
    body = recorded(engine, name).body

    names = read_names(body)

    assert names.id is not None
    assert names.id.startswith(id_prefix)
    assert names.model == {"llama-server": "models/gemma-3-270m-q4_k_m.gguf", "vllm": "tiny"}[engine]
    assert names.finish_reasons == reasons


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"hello",
        b"[1]",
        b'{"id": 5}',
        b'{"id": "' + b"x" * 300 + b'"}',
        b"data: [DONE]\n\n",
        b"data: {broken\n\n",
        b"\xff",
        b'{"x": ' + b"[" * 100_000,
        b'{"id": "\\ud800"}',
    ],
)
def test_other_replies_say_nothing(reply: bytes) -> None:
    assert read_names(reply) == ReplyNames()


def test_generated_text_cannot_state_a_reason() -> None:
    reply = rb'{"id": "a", "choices": [{"message": {"content": "\"finish_reason\": \"stop\""}}]}'
    assert read_names(reply) == ReplyNames("a")


def test_reasons_are_not_repeated() -> None:
    reply = b'{"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}, {"finish_reason": "stop"}]}'
    assert read_names(reply).finish_reasons == ("stop", "length")
