"""The tokens that a request used, as its reply reports them, and the observer that charges them to a key."""

from __future__ import annotations

from collections.abc import Callable

from inference_engine_proxy_server.access.allowances import Allowance
from inference_engine_proxy_server.backends.reply_facts import read_facts, says_its_end
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN, TokenSizes
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["UsageObserver", "tokens_used"]


class UsageObserver(ReplyObserver):
    """Charges one request to the allowance of its key when the request ends.

    Args:
        exchange: the request; its reply has not begun.
        allowance: the allowance of its key, which already counts the request as in flight.
        clock: a monotonic clock, in seconds.
    """

    __slots__ = ("_allowance", "_clock", "_excerpt", "_exchange")

    def __init__(self, exchange: Exchange, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._exchange = exchange
        self._allowance = allowance
        self._clock = clock
        self._excerpt = None
        if allowance.counts_tokens:
            exchange.head.refuse_compression()
            self._excerpt = exchange.observers.excerpt()

    def end(self, outcome: Outcome) -> None:
        """Charge the tokens used; a request that was rejected or reached no backend used none."""
        exchange, excerpt, used = self._exchange, self._excerpt, 0
        if excerpt is not None and exchange.status < 400 and exchange.source is not None:
            used = tokens_used(
                excerpt.read(),
                prompt_estimate=lambda: _estimated_prompt(exchange),
                events=excerpt.events(),
                sent_bytes=exchange.sent_bytes,
                is_complete=outcome is Outcome.COMPLETE,
            )
        self._allowance.end(used, self._clock())


def tokens_used(
    excerpt: bytes, *, prompt_estimate: Callable[[], int], events: int, sent_bytes: int, is_complete: bool
) -> int:
    """Tokens of prompt and answer together.

    Args:
        excerpt: the parts of the reply in which engines report usage; empty before the reply.
        prompt_estimate: estimates the tokens of the prompt.
        events: the number of events in the reply.
        sent_bytes: length of the whole reply.
        is_complete: whether the whole reply has been sent.

    Returns:
        The tokens that the engine reports. A part that it does not report (all of it, in OpenAI streams without
        ``include_usage``) is estimated: the prompt from its length, the answer as one token for every event. A reply
        that reports prompt tokens but no answer tokens is an embedding. The beginning of a stream may report an answer
        of one token, so a broken stream counts at least one token for every event.
    """
    if not excerpt:
        return 0 if is_complete else prompt_estimate()
    facts = read_facts(excerpt)
    prompt, answer = facts.prompt_tokens, facts.answer_tokens
    if answer is None:
        answer = events if events or prompt is not None else int(sent_bytes / USUAL_BYTES_A_TOKEN)
    elif answer < events and not is_complete and not says_its_end(excerpt):
        answer = events
    return (prompt_estimate() if prompt is None else prompt) + answer


def _estimated_prompt(exchange: Exchange) -> int:
    """Tokens of the prompt, estimated from its length; a picture counts as a constant, and a form as 0."""
    head, body = exchange.head, exchange.body
    if body.startswith(b"--"):
        return 0
    return int(read_prompt(head.target, head.path, head.passed_on, body, TokenSizes()).tokens)
