"""Which streams are resumed, and why the others are not.

A stream is resumed if its request breaks no rule of ``REQUEST_RULES``, and what it has delivered breaks none of
``STREAM_RULES``. Each rule exists because the joined answer could otherwise differ from any answer that one engine
would give, or because nobody can prove that it does not. How a request breaks a rule differs from API to API, see
:mod:`~.resume.dialects`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inference_engine_proxy_server.resume.members import Members, has, value
from inference_engine_proxy_server.resume.transcript import Transcript

__all__ = [
    "MOST_RESUMES",
    "REQUEST_RULES",
    "RULES",
    "STREAM_RULES",
    "has_grammar",
    "has_penalty",
    "hides_reasoning",
    "must_call_tool",
    "problem_of",
]

MOST_RESUMES = 2
"""How often one stream is resumed. A third backend that fails points to the request as the cause."""

# Of DeepSeek, Qwen and many others; gpt-oss; Magistral; Seed; Command A; Kimi. Engines usually take them out.
_REASONING_MARKS = (
    "<think>", "</think>", "<|channel|>", "[THINK]", "<seed:think>", "<|START_THINKING|>", "◁think▷",
)  # fmt: skip

_GRAMMARS = (
    "grammar", "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_whitespace_pattern", "structural_tag",
)  # fmt: skip

REQUEST_RULES: Mapping[str, str] = {
    "several_answers": "Each answer would need a continuation of its own.",
    "logprobs": "The probabilities of a continuation are those of another prompt.",
    "structured_output": "A grammar starts anew and would not know what it has accepted.",
    "tool_choice": "A forced tool call cannot be continued as text.",
    "echo": "The engine would repeat the extended prompt.",
    "penalties": "Engines count penalties over the answer only, and would forget its first part.",
    "prompt_form": "Only a prompt of one text, or a list of messages, can be extended by text.",
    "assistant_message": (
        "The client itself continues an assistant message, and engines differ in what they repeat of it."
    ),
    "stored_state": "The conversation or the answer is stored on one backend, and lost with it.",
    "hidden_reasoning": "The text follows reasoning that the client does not get, and that a continuation would lack.",
}
"""Rules about a request, with their reasons."""

STREAM_RULES: Mapping[str, str] = {
    "tool_calls": "Part of a tool call cannot be continued as text.",
    "reasoning": "Templates of reasoning models drop or close reasoning that a message already contains.",
    "unknown_events": "The stream has events that the proxy does not understand.",
    "long_text": "The answer is longer than the proxy keeps.",
    "cut_character": "The text ends inside a character.",
    "stop_string": "The text ends with the beginning of a stop string, which the other engine would not recognize.",
    "one_event": "Some engines begin by repeating the delivered text; a single word may also be a real repetition.",
    "no_usage": "The answer is complete, but the usage that the client asked for is lost.",
    "not_wanted": "The setting `STREAM_RESUME` or the header `x-stream-resume` excludes it.",
    "resumes": "The stream was already resumed twice.",
    "not_continued": "The other backends failed before they continued the stream, or could not continue it.",
    "trailing_space": (
        "The text ends with white space, which the chat template of the other backends removes: it would come twice."
    ),
    "no_other_backend": "No other backend serves the same model and can continue a message.",
}
"""Rules about a stream, with their reasons: what it has delivered, and where it could continue."""

RULES = (*REQUEST_RULES, *STREAM_RULES)
"""The names of all rules."""


def problem_of(transcript: Transcript, stop_strings: Iterable[str] = ()) -> str | None:
    """The rule that a broken stream breaks; ``None`` if it can be continued.

    llama.cpp and vLLM withhold what may become a stop string (vLLM unless ``include_stop_str_in_output``), and write it
    again in a continuation. Other engines may have delivered its beginning.
    """
    if transcript.problem is not None:
        return transcript.problem
    text = transcript.text
    if text.endswith("\ufffd"):
        return "cut_character"
    if any(mark in text for mark in _REASONING_MARKS):
        return "reasoning"
    if any(text.endswith(stop[: end + 1]) for stop in stop_strings for end in range(len(stop))):
        return "stop_string"
    return "one_event" if transcript.is_message and transcript.text_events == 1 else None


def has_grammar(members: Members) -> bool:
    """Whether the request restricts the answer to a grammar or a schema, in a member of one engine."""
    return has(*_GRAMMARS)(members)


def has_penalty(members: Members) -> bool:
    """Whether the request penalizes tokens that the answer has already."""
    changed = {"repetition_penalty": 1, "repeat_penalty": 1, "dry_multiplier": 0}
    return has("presence_penalty", "frequency_penalty")(members) or any(
        value(members, name) not in (None, neutral) for name, neutral in changed.items()
    )


def hides_reasoning(members: Members) -> bool:
    """Whether the client does not get the reasoning (vLLM)."""
    return value(members, "include_reasoning") is False


def must_call_tool(members: Members) -> bool:
    """Whether the answer must be a tool call."""
    return value(members, "tool_choice") not in (None, "auto", "none")
