"""The tokens that a request used, as its reply reports them, and the observer that charges them to a key."""

from __future__ import annotations

import re
from collections.abc import Callable

from inference_engine_proxy_server.access.allowances import Allowance
from inference_engine_proxy_server.backends.reply_facts import read_facts
from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["UsageObserver", "tokens_used"]

_EVENT = re.compile(rb"(?:^|\n)data: ?[{]")


class UsageObserver(ReplyObserver):
    """Charges one request to the allowance of its key when the request ends.

    Args:
        exchange: the request; its reply has not begun.
        allowance: of the request's key. The request counts as in flight there already.
        clock: seconds that only grow.
    """

    __slots__ = ("_allowance", "_clock", "_excerpt", "_exchange")

    def __init__(self, exchange: Exchange, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._exchange = exchange
        self._allowance = allowance
        self._clock = clock
        self._excerpt = exchange.observers.excerpt() if allowance.counts_tokens else None

    def end(self, outcome: Outcome) -> None:
        """Charge the tokens used; a request that was refused or got no reply used none."""
        del outcome
        exchange, used = self._exchange, 0
        if self._excerpt is not None and exchange.status < 400:
            reply = self._excerpt.read()
            used = tokens_used(len(exchange.body), reply, exchange.sent_bytes) if reply else 0
        self._allowance.end(used, self._clock())


def tokens_used(body_bytes: int, excerpt: bytes, sent_bytes: int) -> int:
    """Tokens of prompt and answer together.

    Args:
        body_bytes: length of the request's body.
        excerpt: both ends of the reply, where engines report usage.
        sent_bytes: length of the whole reply.

    Returns:
        What the engine reports. A part that the engine does not report (all of it, in OpenAI streams without
        ``include_usage``) is estimated: one token for every 4 bytes of the request and for every event of the reply, by
        the events' average length.
    """
    facts = read_facts(excerpt)
    prompt, answer = facts.prompt_tokens, facts.answer_tokens
    if prompt is None:
        prompt = int(body_bytes / USUAL_BYTES_A_TOKEN)
    if answer is None:
        events = len(_EVENT.findall(excerpt))
        answer = sent_bytes * events // len(excerpt) if events else int(sent_bytes / USUAL_BYTES_A_TOKEN)
    return prompt + answer
