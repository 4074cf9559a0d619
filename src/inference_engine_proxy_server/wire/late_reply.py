"""A backend's reply to a client that has already received SSE comments, and with them the status 200."""

from __future__ import annotations

from inference_engine_proxy_server.errors import BackendError, InvalidReply
from inference_engine_proxy_server.wire.error_replies import stream_error_event, stream_event_of
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.exchange_sink import ExchangeSink
from inference_engine_proxy_server.wire.reply_fields import is_encoded, is_event_stream
from inference_engine_proxy_server.wire.reply_sink import ChunkSink

__all__ = ["LateReply"]

_ERROR_BYTES = 64 * 1024  # longest error body of an engine that fits into an error event


class LateReply(ExchangeSink):
    """Continues the event stream of ``exchange`` with the reply's events; any other reply becomes an error event.

    A :class:`~.reply_sink.ReplySink`.
    """

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._error: bytearray | None = None  # the body of a reply that is no event stream; ``None`` for a stream
        self._is_encoded = False

    @property
    def sent_bytes(self) -> int:
        """Includes the bytes kept for the error event, so that they count as progress of the backend."""
        return self.exchange.sent_bytes + len(self._error or b"")

    @property
    def chunks(self) -> ChunkSink | None:
        """That of the exchange; ``None`` for the body of an error."""
        return self.exchange.chunks if self._error is None else None

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Take the backend's header section, which can no longer be relayed."""
        del reason, content_length
        self.status = self.exchange.status = status
        self._is_encoded = is_encoded(fields)
        if status != 200 or not is_event_stream(fields):
            self._error = bytearray()
        else:
            self.exchange.end_comments()

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        """Take a whole reply."""
        self.begin(status, reason, fields, len(body))
        if body:
            self.write(body)

    def flush(self) -> None:
        """Does nothing: the header section was sent with the first comment."""

    def write(self, payload: bytes) -> None:
        """Take a piece of the body."""
        if self._error is None:
            self.exchange.write(payload)
            return
        self._error += payload
        if len(self._error) > _ERROR_BYTES:
            raise InvalidReply("The backend's error is too long for an error event.")

    def end(self) -> None:
        """The reply is complete."""
        if self._error is not None and not self.exchange.done:
            self.exchange.end_comments()
            self.exchange.write(self._error_event(bytes(self._error)))
        self.exchange.end()

    def _error_event(self, body: bytes) -> bytes:
        head = self.exchange.head
        if self._is_encoded:
            error = BackendError("The backend compressed its reply, but the stream had begun without compression.")
            return stream_error_event(error, head.path, self.exchange.request_id)
        return stream_event_of(body, self.status, head.path)
