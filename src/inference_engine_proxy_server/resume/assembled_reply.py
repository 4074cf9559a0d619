"""The receiver of a stream whose client has not asked for one, and waits for a JSON reply."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from http import HTTPStatus

import msgspec

from inference_engine_proxy_server.resume.assembly import Assembly
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.exchange_sink import ExchangeSink
from inference_engine_proxy_server.wire.reply_fields import is_event_stream

__all__ = ["AssembledReply"]

_STREAM_FIELDS = re.compile(rb"^(?:content-type|x-accel-buffering):[^\n]*\n", re.IGNORECASE | re.MULTILINE)
_JSON_FIELD = b"Content-Type: application/json; charset=utf-8\r\n"  # as llama.cpp writes it


class _ErrorCode(msgspec.Struct):
    code: int


class _Failure(msgspec.Struct):
    error: _ErrorCode


class AssembledReply(ExchangeSink):
    """Assembles the reply to ``exchange`` from the events of a stream, and sends it when the stream is complete.

    A reply that is not a stream, such as an error, is relayed unchanged. It stands behind a
    :class:`~.resumable_stream.ResumableStream`, which gives it whole events.

    Args:
        exchange: the request.
        backends: those whose streams show what their replies would be.

    Attributes:
        backends: see above.
        sent_bytes: of the stream so far.
        last_block, write_through: see :class:`~.reply_sink.PassThrough`.
        assembly: what has come of the reply.
    """

    def __init__(self, exchange: Exchange, backends: Container[object]) -> None:
        super().__init__(exchange)
        self.backends = backends
        self.sent_bytes = 0
        self.last_block = b""
        self.assembly = Assembly()
        self.write_through: Callable[[bytes], None] = self.assembly.take_chunk
        self._is_stream = False
        self._opening = (200, b" OK", b"")

    @property
    def pass_through(self) -> AssembledReply | None:  # type: ignore[override]
        """Itself for a stream: whole chunks may go directly to :attr:`write_through`."""
        return self if self._is_stream else None

    @property
    def begun(self) -> bool:
        """Whether events of a stream have come."""
        return self.assembly.has_events

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Open the reply."""
        self.status = status
        self._is_stream = status == 200 and is_event_stream(fields)
        if self._is_stream:
            self._opening = (status, reason, _STREAM_FIELDS.sub(b"", fields) + _JSON_FIELD)
        else:
            self.exchange.begin(status, reason, fields, content_length)

    def flush(self) -> None:
        """Send the header section, unless the reply is being assembled."""
        if not self._is_stream:
            self.exchange.flush()

    def write(self, payload: bytes) -> None:
        """Take events, or a piece of a reply that is not a stream."""
        self.sent_bytes += len(payload)
        if self._is_stream:
            self.assembly.take(payload)
        else:
            self.exchange.write(payload)

    def end(self) -> None:
        """Send the assembled reply if the stream is complete and leaves no doubt; else the exchange stays open."""
        if self.exchange.done:
            return
        if not self._is_stream:
            self.exchange.end()
            return
        body = self.assembly.finish()
        if body is not None:
            self.exchange.write_whole(*self._opening, body)
            self.exchange.end()

    def error_status(self) -> int | None:
        """The status of the error that the engine has reported in the stream; ``None`` without an error."""
        failure = self.assembly.failure
        if not failure:
            return None
        try:
            return HTTPStatus(msgspec.json.decode(failure, type=_Failure).error.code).value
        except ValueError:  # no such status, or not a number
            return HTTPStatus.INTERNAL_SERVER_ERROR.value

    def send_error(self, status: int) -> None:
        """Send the error that the engine has reported in the stream as it would have sent it without a stream."""
        if not self.exchange.done:
            reason = f" {HTTPStatus(status).phrase}".encode()
            self.exchange.write_whole(status, reason, self._opening[2], self.assembly.failure)
            self.exchange.end()
