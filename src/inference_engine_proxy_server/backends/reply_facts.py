"""Reads what an engine reports in a reply: token counts, cached tokens, and timings.

Nothing else of a reply is decoded: the last object of each kind that has counts is found by its name. In generated text
such a name would have a backslash before its closing quote, so no text can imitate it.

Sources: recorded replies of llama-server b11434 and vLLM 0.32 (tests/recorded); OpenAI's and Anthropic's references of
chat completions, responses and messages, and Ollama's of its own API (docs/api.md), read November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, NamedTuple, TypeVar

import msgspec

__all__ = ["NO_FACTS", "ReplyFacts", "read_facts", "says_its_end"]

# For (chat) completions, messages, and responses; generated text is JSON-encoded, so it cannot begin a line.
_LAST_EVENT = re.compile(rb"(?:^|\n)(?:data: \[DONE\]|event: (?:message_stop|response\.completed))\r?\n")
_USAGE = re.compile(rb'"usage"(?=\s*+:\s*+\{)')
_TIMINGS = re.compile(rb'"timings"(?=\s*+:\s*+\{)')
# Ollama's own API: members of the last object, behind everything else. A prompt that was cached is left out.
_OLLAMA_PROMPT = re.compile(rb'"prompt_eval_count"\s*+:\s*+(\d{1,12}+)')
_OLLAMA_ANSWER = re.compile(rb'"eval_count"\s*+:\s*+(\d{1,12}+)')
_OBJECT = re.compile(rb"\s*+:\s*+(\{(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+\})")
_TIGHT = {_USAGE: b'"usage":{', _TIMINGS: b'"timings":{'}
_TRIES = 8  # objects of that name; a tool's JSON schema may have a property of the same name

_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]  # so that sums of counts stay numbers
_Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class ReplyFacts(NamedTuple):
    """What an engine has reported about a reply; ``None`` means not reported.

    Attributes:
        prompt_tokens: of the whole prompt.
        cached_tokens: prompt tokens that were in its cache.
        answer_tokens: generated tokens.
        read_tokens, read_ms: prompt tokens that it processed, and how long that took. Only llama.cpp reports them.
        written_ms: duration of generation, from the first token to the last. Only llama.cpp reports it.
    """

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    answer_tokens: int | None = None
    read_tokens: int | None = None
    read_ms: float | None = None
    written_ms: float | None = None


NO_FACTS = ReplyFacts()


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    # Anthropic's messages and OpenAI's responses
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None

    def prompt(self) -> int | None:
        """Tokens of the whole prompt. Anthropic counts cached tokens separately."""
        if self.prompt_tokens is not None or self.input_tokens is None:
            return self.prompt_tokens
        return self.input_tokens + (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)

    def cached(self) -> int | None:
        """Prompt tokens that were cached."""
        details = self.prompt_tokens_details or self.input_tokens_details
        return self.cache_read_input_tokens if details is None else details.cached_tokens

    def answer(self) -> int | None:
        """Tokens of the answer; ``None`` for an embedding."""
        return self.completion_tokens if self.output_tokens is None else self.output_tokens

    def has_counts(self) -> bool:
        """Whether this is a report at all."""
        return self.prompt() is not None or self.answer() is not None or self.total_tokens is not None


class _Timings(msgspec.Struct):
    prompt_n: _Count
    prompt_ms: _Milliseconds
    predicted_n: _Count
    predicted_ms: _Milliseconds
    cache_n: _Count | None = None

    def has_counts(self) -> bool:
        """Whether this is a report at all."""
        return True


_usage_decoder = msgspec.json.Decoder(_Usage)
_timings_decoder = msgspec.json.Decoder(_Timings)
_Kind = TypeVar("_Kind", _Usage, _Timings)


def read_facts(reply: bytes) -> ReplyFacts:
    """What an engine reports in ``reply``.

    Args:
        reply: the body without the framing of chunks, or those parts of it that may report something. Anthropic's
            streams report the prompt at their beginning.
    """
    usage = _last(_usage_decoder, _USAGE, reply) if b'"usage"' in reply else None
    timings = _last(_timings_decoder, _TIMINGS, reply) if b'"timings"' in reply else None
    prompt = cached = answer = None
    if usage is not None:
        reported_first = usage
        if usage.output_tokens is not None and usage.input_tokens is None:
            reported_first = _first(_usage_decoder, _USAGE, reply) or usage
        prompt, cached, answer = reported_first.prompt(), reported_first.cached(), usage.answer()
        if answer is None and usage.total_tokens is not None:
            prompt = usage.total_tokens if prompt is None else prompt
            answer = max(0, usage.total_tokens - prompt)
    if timings is None:
        if usage is None and b'eval_count"' in reply:
            return ReplyFacts(_last_number(_OLLAMA_PROMPT, reply), None, _last_number(_OLLAMA_ANSWER, reply))
        return ReplyFacts(prompt, cached, answer)
    if cached is None:
        cached = timings.cache_n
    if prompt is None and timings.cache_n is not None:
        prompt = timings.cache_n + timings.prompt_n
    if answer is None:
        answer = timings.predicted_n
    return ReplyFacts(prompt, cached, answer, timings.prompt_n, timings.prompt_ms, timings.predicted_ms)


def says_its_end(reply: bytes) -> bool:
    """Whether ``reply``, as for :func:`read_facts`, is a stream whose final event has arrived."""
    return _LAST_EVENT.search(reply) is not None


def _last(decoder: msgspec.json.Decoder[_Kind], name: re.Pattern[bytes], reply: bytes) -> _Kind | None:
    # Every reply is read. In the usual form of a report, without blanks, this costs a third of the general search.
    begins = reply.rfind(_TIGHT[name])
    if begins >= 0:
        found = _decoded(decoder, _object_at(reply, begins + len(_TIGHT[name]) - 1))
        if found is not None:
            return found
    return _any(decoder, [found.end() for found in name.finditer(reply)][: -_TRIES - 1 : -1], reply)


def _object_at(reply: bytes, begins: int) -> bytes:
    """The JSON object that begins there, if no string in it has a brace; else something that is no object."""
    ends = reply.find(b"}", begins) + 1
    while ends and reply.count(b"{", begins, ends) > reply.count(b"}", begins, ends):
        ends = reply.find(b"}", ends) + 1
    return reply[begins:ends]


def _first(decoder: msgspec.json.Decoder[_Kind], name: re.Pattern[bytes], reply: bytes) -> _Kind | None:
    return _any(decoder, [found.end() for found in islice(name.finditer(reply), _TRIES)], reply)


def _last_number(name: re.Pattern[bytes], reply: bytes) -> int | None:
    found = name.findall(reply)
    return int(found[-1]) if found else None


def _any(decoder: msgspec.json.Decoder[_Kind], positions: Sequence[int], reply: bytes) -> _Kind | None:
    for position in positions:
        matched = _OBJECT.match(reply, position)
        found = None if matched is None else _decoded(decoder, matched[1])
        if found is not None:
            return found
    return None


def _decoded(decoder: msgspec.json.Decoder[_Kind], text: bytes) -> _Kind | None:
    try:
        found = decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.has_counts() else None
