"""Parses the replies on a backend's connection and relays each to its sink, byte for byte as it arrives.

Replies are validated as strictly as requests. Anything doubtful is an :class:`InvalidReply`, and the connection is
closed.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

from inference_engine_proxy_server.errors import BackendError, InvalidReply
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.tasks.light_task import Completion
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.exchange_sink import ExchangeSink
from inference_engine_proxy_server.wire.framing import SMALL_CHUNKS, ChunkedBody, InvalidChunk
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.held_stream import HeldStream
from inference_engine_proxy_server.wire.late_reply import LateReply
from inference_engine_proxy_server.wire.reply_head import ReplyHead, ReplyHeadReader
from inference_engine_proxy_server.wire.reply_sink import HeldReply, PassThrough, ReplySink

__all__ = ["ReplyRelay"]

_BODILESS = frozenset({204, 304})
_SILENT_SECONDS = 10.0  # then a client gets the keep-alives of its engine
_PROGRESS_SECONDS = 0.5  # between two checks for progress; reading the clock for each chunk would cost more


class ReplyRelay(asyncio.Protocol):
    """The receiving half of a :class:`~.backend_connection.BackendConnection`.

    Args:
        deadlines: provides the clock.
        memory: cache of the last header section of a reply; shared by all connections to one backend.
        pause_seconds: longest pause within a reply.
        locations: see :class:`~.reply_head.ReplyHeadReader`.

    Attributes:
        deadline: when to check for progress next, see :class:`~.deadlines.Timed`.
        is_reusable: the last reply is complete and the backend accepts another request on this connection.
        keep_alive_seconds: how long the backend keeps an idle connection open; ``None`` if it announces nothing.
        last_byte_at: when the backend last sent a byte of a reply, as far as recorded; 0 before that.
    """

    __slots__ = (
        "_body", "_clock", "_head", "_head_reader", "_held_rest", "_held_statuses", "_held_stream", "_missing",
        "_pass_through", "_pause_seconds", "_progress_bytes", "_progress_seconds", "_quiet_since", "_reply_to_head",
        "_result", "_served", "_sink", "_spoke_first", "_transport", "deadline", "is_reusable", "keep_alive_seconds",
        "last_byte_at", "sent_at",
    )  # fmt: skip

    def __init__(
        self,
        deadlines: Deadlines,
        memory: HeadMemory[ReplyHead],
        pause_seconds: float,
        locations: re.Pattern[bytes] | None = None,
    ) -> None:
        self._clock = deadlines.clock
        self.deadline = NEVER
        self.sent_at = self.last_byte_at = 0.0
        self.is_reusable = False
        self.keep_alive_seconds: int | None = None
        self._transport: asyncio.Transport
        self._head_reader = ReplyHeadReader(memory, locations)
        self._sink: ReplySink | None = None
        self._result: Completion[HeldReply | None] | None = None
        self._held_statuses: frozenset[int] = frozenset()
        self._held_rest: bytes | None = None  # bytes after the header section of a held reply; None: none is held
        self._held_stream: HeldStream | None = None  # the start of a stream that has not sent an event yet
        self._reply_to_head = False  # the request was a HEAD, so its reply has no body
        self._head: ReplyHead | None = None
        self._body: ChunkedBody | None = None
        self._missing = -1  # bytes left of a body of known length; -1: the body ends with the connection
        self._pass_through: PassThrough | None = None  # takes the next whole chunk directly
        self._spoke_first = False  # the backend sent bytes before its first request, as servers of SSH and SMTP do
        self._served = 0  # replies completed; above 0 the backend may have closed the connection as idle
        self._pause_seconds = pause_seconds
        self._progress_seconds = min(_PROGRESS_SECONDS, pause_seconds / 4)
        self._progress_bytes = 0  # bytes of the reply at the last check
        self._quiet_since = 0.0  # when the backend last made progress, or could be heard again

    @property
    def exchange(self) -> Exchange | None:
        """The client's request that the connection serves; ``None`` when it is idle or serves a poll."""
        sink = self._sink
        if isinstance(sink, ExchangeSink):
            return sink.exchange
        return sink if isinstance(sink, Exchange) else None

    def data_received(self, data: bytes) -> None:
        """Relay what the backend sent."""
        # Every streamed token passes here, in one frame. A block that is exactly one whole chunk costs no clock, no
        # further call and no check beyond recognizing it.
        stream = self._pass_through
        if stream is not None:
            line_end = data.find(b"\r\n", 0, 5)
            size = SMALL_CHUNKS.get(data[:line_end])
            if size is not None and len(data) == line_end + size + 4 and data.endswith(b"\r\n"):
                stream.sent_bytes += len(data)
                stream.last_block = data
                stream.write_through(data)
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            self._spoke_first = not self._served
            self._transport.abort()  # the backend sent bytes without a request
            return
        try:
            if self._body is not None:
                self._relay_chunked(sink, self._body, data)
            elif self._head is None:
                self._read_head(sink, data)
            elif self._held_stream is not None:
                self._hold_stream(self._held_stream, data)
            else:
                self._relay(sink, data)
        except (InvalidReply, InvalidChunk) as error:
            self._refuse(error)

    def _read_head(self, sink: ReplySink, data: bytes) -> None:
        found = self._head_reader.feed(data)
        if found is None:
            return  # the deadline stays, also for a header section that arrives byte by byte
        head, rest = found
        self._head = head
        self._missing = -1 if head.content_length is None else head.content_length
        if head.status in self._held_statuses:
            self._hold(head, rest)
        else:
            self._open(sink, head, rest)

    def _hold(self, head: ReplyHead, rest: bytes) -> None:
        self._transport.pause_reading()
        self.deadline = NEVER  # the requester decides at once
        self._held_rest = rest
        result, self._result = self._result, None
        if result is not None and not result.done():
            result.set_result(HeldReply(head.status, head.passed_on))

    def _open(self, sink: ReplySink, head: ReplyHead, rest: bytes) -> None:
        missing = self._missing
        has_no_body = self._reply_to_head or head.status in _BODILESS
        if missing == len(rest) and not has_no_body:  # the whole reply in one read, as usual without streaming
            sink.write_whole(head.status, head.reason, head.passed_on, rest)
            self.last_byte_at = self._clock()
            self._complete(sink)
            return
        if head.opens_stream and not has_no_body and missing:
            self._mark_progress(sink, self._clock())
            self._held_stream = HeldStream(chunked=head.chunked, content_length=head.content_length)
            if rest:
                self._hold_stream(self._held_stream, rest)
            return
        self._begin(sink, head, rest, has_no_body=has_no_body)

    def _begin(self, sink: ReplySink, head: ReplyHead, rest: bytes, *, has_no_body: bool = False) -> None:
        missing = self._missing
        sink.begin(head.status, head.reason, head.passed_on, None if missing < 0 else missing)
        self._mark_progress(sink, self._clock())
        if has_no_body or not missing:
            self._complete(sink, excess=rest)
            return
        if head.chunked:
            self._body = ChunkedBody()
        if rest and self._body is not None:
            self._relay_chunked(sink, self._body, rest)
        elif rest:
            self._relay(sink, rest)
        else:
            sink.flush()
            self._pass_through = sink.pass_through if head.chunked else None

    def _hold_stream(self, held: HeldStream, data: bytes) -> None:
        """Keep the start of an event stream until its first event."""
        if held.take(data):
            self._release_stream(held)
            return
        self.last_byte_at = self._quiet_since = now = self._clock()
        sink, exchange = self._sink, self.exchange
        if exchange is None or exchange.head.is_cross_origin or now - self.sent_at < _SILENT_SECONDS:
            return
        if isinstance(sink, ExchangeSink) and not sink.takes_comments:
            return
        if comments := held.take_keep_alives():
            exchange.send_comment(comments)

    def comment_sent(self) -> None:
        """Relay the reply as one that follows a comment. The comment is no progress of the backend."""
        sink = self._sink
        if isinstance(sink, Exchange) and sink.has_only_comments:
            self._sink = sink = LateReply(sink)
        if sink is not None:
            self._progress_bytes = sink.sent_bytes

    def _release_stream(self, held: HeldStream) -> None:
        """Relay what was held of an event stream, and all that follows."""
        self._held_stream = None
        sink, head = cast(ReplySink, self._sink), cast(ReplyHead, self._head)
        if not held.is_rewritten:
            self._begin(sink, head, held.block)
            return
        sink.begin(head.status, head.reason, head.passed_on, None)
        self._mark_progress(sink, self._clock())
        self._body = held.body
        if held.payload:
            sink.write(held.payload)
        if held.body is not None and held.body.complete:
            self._complete(sink, held.body.excess)

    def _relay_chunked(self, sink: ReplySink, body: ChunkedBody, data: bytes) -> None:
        chunks = sink.chunks
        if chunks is None or not body.whole_chunks(data):
            if pieces := body.feed(data):
                sink.write(b"".join(pieces))
        elif body.complete:
            chunks.write_last_chunks(data)
        else:
            chunks.write_chunks(data)
        if body.complete:
            self._complete(sink, excess=body.excess)
        else:
            self._pass_through = sink.pass_through if body.between_chunks else None

    def _relay(self, sink: ReplySink, data: bytes) -> None:
        missing, excess = self._missing, b""
        if missing < 0:
            sink.write(data)
            return
        if len(data) > missing:
            data, excess = data[:missing], data[missing:]
        self._missing = missing = missing - len(data)
        sink.write(data)
        if not missing:
            self._complete(sink, excess)

    def _complete(self, sink: ReplySink, excess: bytes = b"") -> None:
        head, result = self._head, self._result
        self._sink = self._result = self._pass_through = None
        self.deadline = NEVER
        self._served += 1
        transport = self._transport
        ends_here = excess or transport.is_closing() or transport.get_write_buffer_size()
        if head is not None and head.keep_alive and not ends_here:
            transport.resume_reading()
            self.is_reusable = True
            self.keep_alive_seconds = head.keep_alive_seconds
        sink.end()
        if result is not None and not result.done():
            result.set_result(None)

    def _mark_progress(self, sink: ReplySink, now: float) -> None:
        self._progress_bytes = sink.sent_bytes
        self.last_byte_at = self._quiet_since = now
        self.deadline = now + self._progress_seconds

    def _refuse(self, error: InvalidReply | InvalidChunk) -> None:
        chunked = InvalidReply("The backend's chunked reply is malformed.")
        self._fail(chunked if isinstance(error, InvalidChunk) else error)

    def _fail(self, error: BackendError) -> None:
        result = self._result
        self._sink = self._result = self._pass_through = self._held_rest = self._held_stream = None
        self._transport.abort()
        if result is not None and not result.done():
            result.set_exception(error)
