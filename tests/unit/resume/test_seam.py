from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from inference_engine_proxy_server.errors import StreamNotContinued
from inference_engine_proxy_server.resume.dialects.completions import (
    Completions,
    CompletionsSeam,
    CompletionsTranscript,
)
from inference_engine_proxy_server.resume.transcript import MOST_TEXT_BYTES

COMPLETIONS = Completions()
IDENTITY = {"id": "first", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **members: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({**IDENTITY, "choices": choices, **members}).encode() + b"\n\n"


def transcript_of(*events: bytes) -> CompletionsTranscript:
    transcript = CompletionsTranscript()
    for one in events:
        transcript.take(one)
    transcript.read()
    return transcript


def rewritten(seam: CompletionsSeam, block: bytes) -> Any:
    found = seam.rewrite(block)
    return json.loads(found.removeprefix(b"data: ")) if found else None


@pytest.fixture
def three_words() -> CompletionsTranscript:
    return transcript_of(event({"role": "assistant"}), *(event({"content": word}) for word in ("a", " b", " c")))


def members(**values: Any) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in values.items()}


def test_events_keep_the_identity_of_the_stream(three_words: CompletionsTranscript) -> None:
    found = rewritten(
        CompletionsSeam(three_words, 1), event({"content": " d"}, id="other", created=9, system_fingerprint="f")
    )
    assert found == {
        **IDENTITY,
        "choices": [{"index": 0, "delta": {"content": " d"}, "finish_reason": None}],
        "system_fingerprint": "f",
    }


def test_the_role_and_the_repeated_text_are_removed(three_words: CompletionsTranscript) -> None:
    seam = CompletionsSeam(three_words, 1)
    assert rewritten(seam, event({"role": "assistant", "content": ""})) is None
    assert rewritten(seam, event({"content": "a b c d"}))["choices"][0]["delta"] == {"content": " d"}
    assert rewritten(seam, event({"content": "a b c"}))["choices"][0]["delta"] == {"content": "a b c"}


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_a_continuation_that_reasons_is_a_new_answer(three_words: CompletionsTranscript, name: str) -> None:
    with pytest.raises(StreamNotContinued):
        CompletionsSeam(three_words, 1).rewrite(event({name: "hm"}))
    assert rewritten(CompletionsSeam(three_words, 1), event({name: "", "content": " d"}))
    assert rewritten(CompletionsSeam(transcript_of(event({"role": "assistant"})), 1), event({name: "hm"}))


def test_a_completion_may_repeat_a_word() -> None:
    said = {"index": 0, "text": "ha", "finish_reason": None}
    block = b"data: " + json.dumps({"id": "x", "object": "text_completion", "choices": [said]}).encode() + b"\n\n"
    assert rewritten(CompletionsSeam(transcript_of(block), 1), block)["choices"] == [said]


def test_the_usage_is_that_of_one_uninterrupted_answer(three_words: CompletionsTranscript) -> None:
    usage = {
        "prompt_tokens": 13, "completion_tokens": 7, "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 12},
    }  # fmt: skip
    assert rewritten(CompletionsSeam(three_words, 1), event(usage=usage))["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 10},
    }  # fmt: skip


def test_the_answer_counts_whole_if_its_text_makes_fewer_tokens_of_the_prompt(
    three_words: CompletionsTranscript,
) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}
    assert rewritten(CompletionsSeam(three_words, 1), event(usage=usage))["usage"] == {
        "prompt_tokens": 0, "completion_tokens": 10, "total_tokens": 10,
    }  # fmt: skip


def test_the_timings_cover_the_whole_answer(three_words: CompletionsTranscript) -> None:
    timings = {"cache_n": 12, "prompt_n": 1, "prompt_ms": 5.0, "predicted_n": 7, "predicted_ms": 1000.0}
    found = rewritten(CompletionsSeam(three_words, 1.0), event({}, "stop", timings=timings))["timings"]
    assert (found["cache_n"], found["prompt_n"], found["prompt_ms"]) == (10, 0, 5.0)
    assert (found["predicted_n"], found["predicted_ms"]) == (10, 2000.0)
    assert (found["predicted_per_token_ms"], found["predicted_per_second"]) == (200.0, 5.0)


@pytest.mark.parametrize("block", [b": ping\n\n", b"data: [DONE]\n\n", b'data: {"other":1}\n\n'])
def test_what_is_no_event_of_the_answer_is_unchanged(three_words: CompletionsTranscript, block: bytes) -> None:
    assert CompletionsSeam(three_words, 1).rewrite(block) == block


def test_a_long_answer_is_read_in_parts_and_given_up_above_the_bound() -> None:
    transcript = CompletionsTranscript()
    word = event({"content": "x" * 1000})
    for _ in range(MOST_TEXT_BYTES // 1000):
        transcript.take(word)
    transcript.read()
    assert (transcript.problem, len(transcript.text)) == (None, MOST_TEXT_BYTES // 1000 * 1000)

    transcript.take(word)
    transcript.read()
    assert (transcript.problem, transcript.text) == ("long_text", "")


def test_limits_are_reduced_by_the_delivered_tokens() -> None:
    asked = members(prompt="p", max_tokens=10, min_tokens=2, n_predict=-1, max_completion_tokens=None)
    said = transcript_of(*(event({"content": letter}) for letter in "abc"))
    assert COMPLETIONS.tokens_left(asked, 3) == 7
    assert json.loads(COMPLETIONS.continued(asked, said)) == {
        "prompt": "pabc", "max_tokens": 7, "min_tokens": 0, "n_predict": -1, "max_completion_tokens": None,
    }  # fmt: skip
    assert COMPLETIONS.tokens_left(members(prompt="p"), 3) is None


def test_an_answer_without_text_starts_anew() -> None:
    asked = members(messages=[{"role": "user", "content": "hi"}], max_tokens=10)
    assert json.loads(COMPLETIONS.continued(asked, CompletionsTranscript())) == {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 10,
    }


@pytest.mark.parametrize(
    ("options", "wanted"), [({"include_usage": True}, True), ({"include_usage": False}, False), (None, False)]
)
def test_the_usage_is_wanted_if_the_options_say_so(options: object, wanted: bool) -> None:
    assert COMPLETIONS.wants_usage(members(stream_options=options)) is wanted
    assert not COMPLETIONS.wants_usage({})
