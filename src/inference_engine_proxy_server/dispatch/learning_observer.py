"""Reports a reply's beginning and end to the tracker of its request, so that routing learns from it."""

from __future__ import annotations

from inference_engine_proxy_server.backends.reply_facts import read_facts, says_its_end
from inference_engine_proxy_server.routing.tracker import Tracker
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["LearningObserver"]


class LearningObserver(ReplyObserver):
    """Reports to ``tracker`` when the first data of the reply arrives, and what the complete reply contains.

    Args:
        exchange: the request; its reply has not begun.
        tracker: the request's tracker.
    """

    __slots__ = ("_exchange", "_tracker")

    def __init__(self, exchange: Exchange, tracker: Tracker) -> None:
        self._exchange = exchange
        self._tracker = tracker

    def begin(self, block: bytes) -> None:
        """The engine has read the prompt."""
        del block
        self._tracker.begin()

    def end(self, outcome: Outcome) -> None:
        """Report a complete reply. An error reply is ignored, because its prompt was not read.

        Many clients disconnect when the last event has arrived, before the end of the reply. Such a reply is complete.
        """
        exchange, tracker = self._exchange, self._tracker
        if exchange.status >= 400:
            return
        if outcome is Outcome.COMPLETE or says_its_end(exchange.reports):
            tracker.complete(read_facts(exchange.reports) if tracker.wants_facts() else None)
