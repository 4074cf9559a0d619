"""The limits of API keys: which models a key permits, and how much it may use."""

from __future__ import annotations

from collections.abc import Callable

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.access.usage import UsageObserver
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.unambiguous_model import unambiguous_model
from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = ["KeyLimits"]


class KeyLimits:
    """Enforces the limits of keys.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def begin(self, exchange: Exchange, access: Access) -> str | None:
        """Check ``exchange`` against the limits of its key, and count it as in flight until it ends.

        Returns:
            The model that the request names; ``None`` if the key permits every model, and the model was not read.

        Raises:
            ClientError: 403, the key does not permit the model.
            CapacityError: 429, a limit of the key is reached.
        """
        key, allowance = access.key, access.allowance
        model = None
        if key.models is not None:
            model = unambiguous_model(exchange.head.target, exchange.head.passed_on, exchange.body)
            if not access.permits(model):
                message = f"This key may only be used for: {', '.join(sorted(key.models))}."
                raise ClientError(message, status=403, code="model_not_permitted")
        now = self._clock()
        try:
            allowance.begin(now)
        finally:
            exchange.common_fields = allowance.fields(now)
        exchange.observers.add(UsageObserver(exchange, allowance, self._clock))
        return model
