"""A backend's reply to a client that has been told something before, so that its status is out already."""

from __future__ import annotations

from collections.abc import Callable

from inference_engine_proxy_server.errors import InvalidReply, stream_event_of
from inference_engine_proxy_server.wire.exchange import Exchange, ReplySource, is_event_stream

__all__ = ["LateReply"]

_ERROR_BYTES = 64 * 1024  # of an engine's own error, which is told in one event


class LateReply:
    """Continues the stream of events of ``exchange`` with the reply's; any other reply becomes its last event.

    A :class:`~.reply_sink.ReplySink`; ``status`` is the backend's, 0 before it is known.
    """

    write_through: Callable[[bytes], None] | None = None  # each block is looked at

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.status = 0
        self.last_block = b""
        self._error: bytearray | None = None  # what is not a stream of events; ``None``: it is one

    @property
    def source(self) -> ReplySource | None:
        """See :class:`Exchange`."""
        return self.exchange.source

    @source.setter
    def source(self, source: ReplySource | None) -> None:
        self.exchange.source = source

    @property
    def sent_bytes(self) -> int:
        """Also counts what is kept for the last event: that the backend goes on is told by it."""
        return self.exchange.sent_bytes + len(self._error or b"")

    @sent_bytes.setter
    def sent_bytes(self, count: int) -> None:
        raise NotImplementedError  # only who writes through counts for himself

    @property
    def takes_chunks(self) -> bool:
        """See :class:`Exchange`."""
        return self._error is None and self.exchange.takes_chunks

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """The backend's header section, of which nothing can be passed on any more."""
        del reason, content_length
        self.status = status
        self.exchange.is_only_told = False
        if status != 200 or not is_event_stream(fields):
            self._error = bytearray()

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        """Take a whole reply."""
        self.begin(status, reason, fields, len(body))
        if body:
            self.write(body)

    def flush(self) -> None:
        """Nothing waits."""

    def write(self, payload: bytes) -> None:
        """Take a piece of the body."""
        if self._error is None:
            self.exchange.write(payload)
            return
        self._error += payload
        if len(self._error) > _ERROR_BYTES:
            raise InvalidReply("The backend's error is too long to be told in an event.")

    def write_chunks(self, block: bytes) -> None:
        """Take whole chunks as they are."""
        self.exchange.write_chunks(block)

    def write_last_chunks(self, block: bytes) -> None:
        """Take the last chunks as they are."""
        self.exchange.write_last_chunks(block)

    def end(self) -> None:
        """The reply is complete."""
        if self._error is not None and not self.exchange.done:
            self.exchange.write(stream_event_of(bytes(self._error), self.exchange.head.path))
        self.exchange.end()
