"""What a key permits, and what its requests use up: asked before a request goes on, told when it is over."""

from __future__ import annotations

from collections.abc import Callable

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.access.usage import tokens_used
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.unambiguous_model import unambiguous_model
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.reply_tail import ReplyTail

__all__ = ["KeyLimits"]


class KeyLimits:
    """Holds exchanges to the limits of their keys.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def begin(self, exchange: Exchange) -> None:
        """Let ``exchange``, which has a key, go on.

        Raises:
            ClientError: 403, its key does not permit the model.
            CapacityError: 429, nothing is left of its key's limits.
        """
        access: Access = exchange.head.access
        key, allowance = access.key, access.allowance
        if key.models is not None:
            exchange.model = unambiguous_model(exchange.head.target, exchange.head.passed_on, exchange.body)
            if not access.permits(exchange.model):
                message = f"This key may only be used for: {', '.join(sorted(key.models))}."
                raise ClientError(message, status=403, code="model_not_permitted")
        now = self._clock()
        try:
            allowance.begin(now)
        finally:
            exchange.limit_fields = exchange.extra_fields = allowance.fields(now)
        exchange.is_counted = True
        if allowance.counts_tokens:
            exchange.tail = ReplyTail()

    def end(self, exchange: Exchange) -> None:
        """``exchange``, which went on, is over."""
        access: Access = exchange.head.access
        allowance = access.allowance
        used = 0
        if allowance.counts_tokens and exchange.tail is not None and exchange.status < 400:
            reply = exchange.tail.read()
            used = tokens_used(len(exchange.body), reply, exchange.sent_bytes) if reply else 0
        allowance.end(used, self._clock())
