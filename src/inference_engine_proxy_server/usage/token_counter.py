"""The observer that counts the tokens of a request when its reply ends."""

from __future__ import annotations

from inference_engine_proxy_server.backends.reply_facts import read_facts, says_its_end
from inference_engine_proxy_server.requests.destinations import IN_A_SLOT, writes_text
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.usage.tokens import NO_TOKENS, TokenUse, tokens_used
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["TokenCounter"]


class TokenCounter(ReplyObserver):
    """Counts the tokens of one request. All observers that need the number share one counter, see :meth:`of`.

    Attributes:
        used: the tokens; none before the end. A request that was rejected, reached no backend, or takes no slot of one
            uses none.
    """

    __slots__ = ("_excerpt", "_exchange", "used")

    def __init__(self, exchange: Exchange) -> None:
        exchange.head.refuse_compression()
        self._exchange = exchange
        self._excerpt = exchange.observers.excerpt()
        self.used = NO_TOKENS

    @classmethod
    def of(cls, exchange: Exchange) -> TokenCounter:
        """The counter of ``exchange``, whose reply has not begun. It counts before later observers learn of the end."""
        counter = exchange.observers.find(cls)
        if counter is None:
            counter = cls(exchange)
            exchange.observers.add(counter)
        return counter

    def end(self, outcome: Outcome) -> None:
        """Count."""
        exchange = self._exchange
        if exchange.status < 400 and exchange.head.destination in IN_A_SLOT:
            self.used = self._count(is_complete=outcome is Outcome.COMPLETE)

    def _count(self, *, is_complete: bool) -> TokenUse:
        exchange, excerpt = self._exchange, self._excerpt
        text = excerpt.read()
        if not text:
            has_read_prompt = exchange.source is not None and not is_complete
            return TokenUse(self._estimated_prompt(), 0, 0, is_estimate=True) if has_read_prompt else NO_TOKENS
        return tokens_used(
            excerpt.parsed(read_facts),
            prompt_estimate=self._estimated_prompt,
            events=excerpt.events(),
            sent_bytes=exchange.sent_bytes,
            is_whole=is_complete or says_its_end(text),
            has_text=writes_text(exchange.head.path),
        )

    def _estimated_prompt(self) -> int:
        """Tokens of the prompt, estimated from its length; a picture counts as a constant, and a form as 0."""
        head, body = self._exchange.head, self._exchange.body
        if body.startswith(b"--"):
            return 0
        return int(read_prompt(head.target, head.path, head.passed_on, body, TokenSizes()).tokens)
