"""How many tokens a request has used, as far as its reply tells."""

from __future__ import annotations

import re

__all__ = ["tokens_used"]

_BYTES_A_TOKEN = 4  # of a prompt in English; others have fewer
# What engines write, of which the last counts: OpenAI's total, Anthropic's two parts, llama.cpp's timings.
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')
_PARTS = (
    re.compile(rb'"(?:input_tokens|prompt_n)"\s*:\s*(\d{1,12})'),
    re.compile(rb'"(?:output_tokens|predicted_n)"\s*:\s*(\d{1,12})'),
)
_EVENT = re.compile(rb"(?:^|\n)data: ?[{]")


def tokens_used(body_bytes: int, tail: bytes, sent_bytes: int) -> int:
    """Tokens of prompt and answer together.

    Args:
        body_bytes: length of the request's body.
        tail: the reply's last bytes, where engines tell it.
        sent_bytes: length of the whole reply.

    Returns:
        What the engine says; where it does not say (streams of OpenAI's kind without ``include_usage``), an estimate:
        a token for every 4 bytes of the request and for every event of the reply, by their average length.
    """
    if total := _TOTAL.findall(tail):
        return int(total[-1])
    if parts := [int(found[-1]) for pattern in _PARTS if (found := pattern.findall(tail))]:
        return sum(parts)
    events = len(_EVENT.findall(tail))
    answer = sent_bytes * events // len(tail) if events else sent_bytes // _BYTES_A_TOKEN
    return body_bytes // _BYTES_A_TOKEN + answer
