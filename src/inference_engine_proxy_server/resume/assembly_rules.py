"""Which requests without ``stream`` are sent as streams, and how.

A request is sent as a stream if the proxy knows what each member of its body does to the reply of llama.cpp, and if
this can be seen in a stream. So it is a list of what is allowed: a member that a later build of llama.cpp gives a
meaning cannot change a reply unnoticed.

Source: llama.cpp build 11549, ``tools/server/server-schema.cpp`` and ``server-common.cpp``
(``oaicompat_chat_params_parse``).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inference_engine_proxy_server.requests.content import read_list, role_of

__all__ = ["ASSEMBLED_PATHS", "as_stream", "can_be_assembled"]

ASSEMBLED_PATHS = frozenset({"/v1/chat/completions", "/chat/completions", "/v1/completions"})
"""The paths whose replies can be assembled. llama.cpp's own ``/completions`` reports its settings in the reply."""

_ANY = frozenset({
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "n_predict", "stop",
    # sampling
    "temperature", "top_p", "top_k", "min_p", "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold",
    "dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta", "adaptive_target",
    "adaptive_decay", "repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty", "dry_multiplier",
    "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "seed", "samplers", "min_keep",
    "logit_bias", "ignore_eos",
    # the form of the answer
    "response_format", "json_schema", "grammar", "tools", "tool_choice", "parallel_tool_calls",
    "chat_template_kwargs", "reasoning_effort", "reasoning_budget_tokens", "thinking_budget_tokens",
    "reasoning_budget_message",
    # the engine's slots and caches
    "cache_prompt", "id_slot", "n_keep", "n_discard", "n_cache_reuse", "lora",
    # replaced in the stream, and without effect on a reply
    "stream_options", "timings_per_token",
    # of OpenAI's API, and ignored by llama.cpp
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity",
})  # fmt: skip
"""Members that may have any value."""

_OFF = frozenset({b"false", b"null"})
_ONE = frozenset({b"1", b"null"})
_NONE = frozenset({b"0", b"null"})
_ONLY: Mapping[str, frozenset[bytes]] = {
    "stream": _OFF,
    # several answers
    "n": _ONE,
    "best_of": _ONE,
    # a stream distributes the probabilities differently
    "logprobs": _OFF,
    "top_logprobs": frozenset({b"null"}),
    "n_probs": _NONE,
    # a reply repeats the message that it continues; a stream does not
    "echo": _OFF,
    "suffix": frozenset({b"null"}),
    "continue_final_message": _OFF,
    "add_generation_prompt": frozenset({b"true", b"null"}),
    # further members of the reply
    "verbose": _OFF,
    "return_progress": _OFF,
    "return_tokens": _OFF,
    # the other format leaves reasoning in the text of streams only
    "reasoning_format": frozenset({b'"auto"', b'"none"', b'"deepseek"'}),
}
"""Members that may have these values only."""

_STREAM: Mapping[str, object] = {
    "stream": True,
    "stream_options": {"include_usage": True},
    "timings_per_token": True,  # tells whether the text of the last token was sent
}

Members = Mapping[str, msgspec.Raw]


def can_be_assembled(members: Members) -> bool:
    """Whether the reply to a request with this body can be assembled from a stream."""
    for name, raw in members.items():
        if name not in _ANY and bytes(raw) not in _ONLY.get(name, ()):
            return False
    if "messages" in members:
        return not _ends_with_assistant(members["messages"])
    return bytes(members.get("prompt", b"")).startswith(b'"')  # a list may have several prompts


def as_stream(members: Members) -> bytes:
    """The body of the same request as a stream, from which the reply can be assembled."""
    return msgspec.json.encode({**members, **_STREAM})


def _ends_with_assistant(messages: msgspec.Raw) -> bool:
    """Whether llama.cpp would continue the last message, which the reply repeats and a stream does not."""
    try:
        listed = read_list(messages)
        return bool(listed) and role_of(listed[-1]) == "assistant"
    except (ValueError, msgspec.DecodeError):
        return True  # the engine rejects it
