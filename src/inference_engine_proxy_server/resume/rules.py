"""Which streams are resumed, and why the others are not.

A stream is resumed if its request breaks no rule of ``REQUEST_RULES``, and what it has delivered breaks none of
``STREAM_RULES``. Each rule exists because the joined answer could otherwise differ from any answer that one engine
would give, or because nobody can prove that it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from inference_engine_proxy_server.resume.transcript import Transcript

__all__ = ["MOST_RESUMES", "PATHS", "REQUEST_RULES", "RULES", "STREAM_RULES", "broken_rule", "problem_of"]

PATHS = frozenset({"/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions"})
"""The paths whose streams are resumed."""

MOST_RESUMES = 2
"""How often one stream is resumed. A third backend that fails points to the request as the cause."""

Members = Mapping[str, msgspec.Raw]
"""The members of a request's body, undecoded."""


class Rule(NamedTuple):
    """One reason not to resume.

    Attributes:
        name: label of metrics and logs.
        reason: why such streams are not resumed.
        is_broken: whether a request breaks the rule.
    """

    name: str
    reason: str
    is_broken: Callable[[Members], bool]


def _value(members: Members, name: str) -> Any:
    raw = members.get(name)
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None  # the engine rejects the request


def _has(*names: str) -> Callable[[Members], bool]:
    """Whether one of the members has a value that is not false, zero or empty."""
    return lambda members: any(_value(members, name) for name in names)


def _is_above_one(*names: str) -> Callable[[Members], bool]:
    def is_broken(members: Members) -> bool:
        values = [_value(members, name) for name in names]
        return any(isinstance(value, int | float) and value > 1 for value in values)

    return is_broken


def _is_structured(members: Members) -> bool:
    wanted = _value(members, "response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    return kind not in (None, "text") or _has(*_GRAMMARS)(members)


def _must_call_tool(members: Members) -> bool:
    return _value(members, "tool_choice") not in (None, "auto", "none")


def _has_penalty(members: Members) -> bool:
    changed = {"repetition_penalty": 1, "repeat_penalty": 1, "dry_multiplier": 0}
    return _has("presence_penalty", "frequency_penalty")(members) or any(
        _value(members, name) not in (None, neutral) for name, neutral in changed.items()
    )


def _is_not_text(members: Members) -> bool:
    return "messages" not in members and not isinstance(_value(members, "prompt"), str)


def _ends_with_assistant(members: Members) -> bool:
    messages = _value(members, "messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


_REASONING_MARKS = ("<think>", "</think>")
_GRAMMARS = (
    "grammar", "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_whitespace_pattern", "structural_tag",
)  # fmt: skip

REQUEST_RULES = (
    Rule("several_answers", "Each answer would need a continuation of its own.", _is_above_one("n", "best_of")),
    Rule(
        "logprobs",
        "The probabilities of a continuation are those of another prompt.",
        _has(
            "logprobs", "top_logprobs", "prompt_logprobs", "n_probs", "return_token_ids", "return_tokens_as_token_ids"
        ),
    ),
    Rule("structured_output", "A grammar starts anew and would not know what it has accepted.", _is_structured),
    Rule("tool_choice", "A forced tool call cannot be continued as text.", _must_call_tool),
    Rule("echo", "The engine would repeat the extended prompt.", _has("echo", "suffix")),
    Rule("penalties", "Engines count penalties over the answer only, and would forget its first part.", _has_penalty),
    Rule("prompt_form", "Only a prompt of one text can be extended by text.", _is_not_text),
    Rule(
        "assistant_message",
        "The client itself continues an assistant message, and engines differ in what they repeat of it.",
        lambda members: _ends_with_assistant(members) or _has("continue_final_message")(members),
    ),
)
"""Rules about a request. The order decides which rule is reported."""

STREAM_RULES: Mapping[str, str] = {
    "tool_calls": "Part of a tool call cannot be continued as text.",
    "reasoning": "Templates of reasoning models drop or close reasoning that a message already contains.",
    "unknown_events": "The stream has events that the proxy does not understand.",
    "long_text": "The answer is longer than the proxy keeps.",
    "cut_character": "The text ends inside a character.",
    "one_event": "Some engines begin by repeating the delivered text; a single word may also be a real repetition.",
    "no_usage": "The answer is complete, but the usage that the client asked for is lost.",
    "not_wanted": "The setting `STREAM_RESUME` or the header `x-stream-resume` excludes it.",
    "resumes": "The stream was already resumed twice.",
    "not_continued": "The other backends failed before they continued the stream, or could not continue it.",
    "no_other_backend": "No other backend serves the same model and can continue a message.",
}
"""Rules about a stream: what it has delivered, and where it could continue."""

RULES = (*(rule.name for rule in REQUEST_RULES), *STREAM_RULES)
"""The names of all rules."""


def broken_rule(members: Members) -> str | None:
    """The name of the first rule that the request breaks; ``None`` if it breaks none."""
    return next((rule.name for rule in REQUEST_RULES if rule.is_broken(members)), None)


def problem_of(transcript: Transcript) -> str | None:
    """The rule that a broken stream breaks; ``None`` if it can be continued."""
    if transcript.problem is not None:
        return transcript.problem
    text = transcript.text
    if text.endswith("\ufffd"):
        return "cut_character"
    if any(mark in text for mark in _REASONING_MARKS):
        return "reasoning"
    return "one_event" if transcript.is_chat and transcript.text_events == 1 else None
