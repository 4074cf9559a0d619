"""How many tokens a request has used, as far as its reply tells."""

from __future__ import annotations

import re

__all__ = ["tokens_used"]

_BYTES_A_TOKEN = 4  # of a prompt in English; others have fewer
# What engines write, of which the last counts: OpenAI's total; else Anthropic's parts or llama.cpp's timings, which
# both count the part of a prompt that was cached apart.
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')
_PROMPT = re.compile(rb'"(?:input_tokens|prompt_n)"\s*:\s*(\d{1,12})')
_CACHED = re.compile(rb'"(?:cache_read_input_tokens|cache_n)"\s*:\s*(\d{1,12})')
_ANSWER = re.compile(rb'"(?:output_tokens|predicted_n)"\s*:\s*(\d{1,12})')
_EVENT = re.compile(rb"(?:^|\n)data: ?[{]")


def tokens_used(body_bytes: int, tail: bytes, sent_bytes: int) -> int:
    """Tokens of prompt and answer together.

    Args:
        body_bytes: length of the request's body.
        tail: the reply's last bytes, where engines tell it.
        sent_bytes: length of the whole reply.

    Returns:
        What the engine says; for the part that it does not say (all of it, in streams of OpenAI's kind without
        ``include_usage``; the prompt, in a long stream of Anthropic's kind) an estimate: a token for every 4 bytes
        of the request and for every event of the reply, by their average length.
    """
    at = tail.rfind(b'"total_tokens"')
    if at >= 0 and (total := _TOTAL.match(tail, at)):
        return int(total[1])
    prompt, answer = _last(_PROMPT, tail), _last(_ANSWER, tail)
    if prompt is None:
        prompt = body_bytes // _BYTES_A_TOKEN
    else:
        prompt += _last(_CACHED, tail) or 0
    if answer is None:
        events = len(_EVENT.findall(tail))
        answer = sent_bytes * events // len(tail) if events else sent_bytes // _BYTES_A_TOKEN
    return prompt + answer


def _last(pattern: re.Pattern[bytes], tail: bytes) -> int | None:
    found = pattern.findall(tail)
    return int(found[-1]) if found else None
