"""The base class of sinks that relay a backend's reply to an exchange and change it on the way."""

from __future__ import annotations

from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.reply_sink import ReplySource

__all__ = ["ExchangeSink"]


class ExchangeSink:
    """A part of a :class:`~.reply_sink.ReplySink` in front of ``exchange``.

    Attributes:
        status: of the backend's reply; 0 before it is known.
        takes_comments: whether the client may get the comments with which an engine keeps an idle stream alive.
        is_at_seam: the exchange has delivered a part of a stream, and waits for another reply that continues it.
    """

    pass_through = None  # each block is inspected
    takes_comments = True

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.status = 0
        self.is_at_seam = False

    @property
    def source(self) -> ReplySource | None:
        """See :class:`Exchange`."""
        return self.exchange.source

    @source.setter
    def source(self, source: ReplySource | None) -> None:
        self.exchange.source = source
