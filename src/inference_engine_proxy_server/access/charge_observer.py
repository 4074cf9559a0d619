"""The observer that charges a request to the allowance of its key."""

from __future__ import annotations

from collections.abc import Callable

from inference_engine_proxy_server.access.allowances import Allowance
from inference_engine_proxy_server.usage.token_counter import TokenCounter
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["ChargeObserver"]


class ChargeObserver(ReplyObserver):
    """Charges one request when it ends.

    Args:
        exchange: the request; its reply has not begun.
        allowance: the allowance of its key, which already counts the request as in flight.
        clock: a monotonic clock, in seconds.
    """

    __slots__ = ("_allowance", "_clock", "_counter")

    def __init__(self, exchange: Exchange, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._allowance = allowance
        self._clock = clock
        self._counter = TokenCounter.of(exchange) if allowance.counts_tokens else None

    def end(self, outcome: Outcome) -> None:
        """Charge the tokens used."""
        del outcome
        counter = self._counter
        self._allowance.end(0 if counter is None else counter.used.total, self._clock())
