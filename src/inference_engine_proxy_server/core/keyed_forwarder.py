"""Forwards what a key permits, within its limits."""

from __future__ import annotations

from collections.abc import Callable

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.access.usage import tokens_used
from inference_engine_proxy_server.core.forwarder import Forwarder
from inference_engine_proxy_server.core.request_traits import requested_model
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = ["KeyedForwarder"]


class KeyedForwarder:
    """Answers exchanges whose ``access`` is that of a key.

    Args:
        forwarder: does the rest.
        clock: seconds that only grow.
    """

    def __init__(self, forwarder: Forwarder, clock: Callable[[], float]) -> None:
        self._forwarder = forwarder
        self._clock = clock

    async def forward(self, exchange: Exchange) -> None:
        """Give ``exchange`` the reply of the best backend.

        Raises:
            ClientError: 403, its key does not permit the model.
            ProxyError: as :meth:`Forwarder.forward`; 429, nothing is left of its key's limits.
        """
        access: Access | None = exchange.access
        if access is None:  # only a browser's preflight comes here without a key: no engine needs to see it
            exchange.pass_preflight()
            return
        if access.key.models is not None and not access.permits(requested_model(exchange.head.target, exchange.body)):
            message = f"This key may only be used for: {', '.join(sorted(access.key.models))}."
            raise ClientError(message, status=403, code="model_not_permitted")
        allowance = access.allowance
        body_bytes = len(exchange.body)
        try:
            allowance.begin(self._clock())
        finally:
            exchange.limit_fields = allowance.fields(self._clock())
        if allowance.counts_tokens:
            exchange.tail = bytearray()
        try:
            await self._forwarder.forward(exchange)
        finally:
            used = tokens_used(body_bytes, bytes(exchange.tail), exchange.sent_bytes) if exchange.tail else 0
            allowance.end(used, self._clock())
