"""How many tokens a request has used, as far as its reply tells."""

from __future__ import annotations

import re

from inference_engine_proxy_server.backends.reply_facts import read_facts
from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN

__all__ = ["tokens_used"]

_EVENT = re.compile(rb"(?:^|\n)data: ?[{]")


def tokens_used(body_bytes: int, tail: bytes, sent_bytes: int) -> int:
    """Tokens of prompt and answer together.

    Args:
        body_bytes: length of the request's body.
        tail: the reply's last bytes, where engines tell it.
        sent_bytes: length of the whole reply.

    Returns:
        What the engine says; for the part that it does not say (all of it, in streams of OpenAI's kind without
        ``include_usage``) an estimate: a token for every 4 bytes of the request and for every event of the reply, by
        their average length.
    """
    facts = read_facts(tail)
    prompt, answer = facts.prompt_tokens, facts.answer_tokens
    if prompt is None:
        prompt = int(body_bytes / USUAL_BYTES_A_TOKEN)
    if answer is None:
        events = len(_EVENT.findall(tail))
        answer = sent_bytes * events // len(tail) if events else int(sent_bytes / USUAL_BYTES_A_TOKEN)
    return prompt + answer
