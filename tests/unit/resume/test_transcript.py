"""A transcript keeps little more than the delivered text."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from inference_engine_proxy_server.resume.dialects.completions import CompletionsTranscript
from inference_engine_proxy_server.resume.transcript import MOST_TEXT_BYTES

RAW_BYTES = 16 * 1024
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
