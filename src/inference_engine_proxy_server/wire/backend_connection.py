"""A connection to a backend: one request out, its reply relayed to where it belongs, byte for byte as it arrives.

The reply is parsed and validated as strictly as a request is; any doubt is an :class:`InvalidReply`, and the
connection is thrown away.
"""

from __future__ import annotations

import asyncio
import select
from typing import cast

from inference_engine_proxy_server.errors import BackendBroke, BackendError, BackendTimeout, InvalidReply
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.tasks.light_task import Completion
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.framing import SMALL_CHUNKS, ChunkedBody, InvalidChunk
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.late_reply import LateReply
from inference_engine_proxy_server.wire.reply_head import ReplyHead, ReplyHeadReader
from inference_engine_proxy_server.wire.reply_sink import HeldReply, PassThrough, ReplySink

__all__ = ["BackendConnection"]

_BODILESS = frozenset({204, 304})
_LOOK_SECONDS = 0.5  # between two looks whether a reply goes on; noting the time at each chunk would cost more
_FRESH_SECONDS = 0.1  # in which a backend hardly ever closes a connection that it has just agreed to keep

_NO_STATUSES: frozenset[int] = frozenset()


class BackendConnection(asyncio.Protocol):
    """One connection, used by one request at a time.

    Args:
        deadlines: watches this connection.
        memory: of the replies' header sections; shared by all connections to one backend.
        first_byte_seconds: longest wait for a reply's first byte.
        pause_seconds: longest wait for each next one.

    Attributes:
        is_reusable: the last reply is complete and the backend will take another request.
        keep_alive_seconds: how long the backend says it waits for one; ``None`` when it does not say.
        sent_at: when the last request was sent; 0 before the first.
        waits_since: since when the backend could send something for it, but for the time in which the client was
            behind; ``inf`` in that time.
        last_byte_at: when the backend was last seen to have sent something, as of the last look; 0 before that.
    """

    __slots__ = (
        "_body", "_clock", "_deadlines", "_first_byte_seconds", "_head", "_head_reader", "_held_rest", "_held_statuses",
        "_look_seconds", "_missing", "_noted_bytes", "_pass_through", "_pause_seconds", "_poll", "_quiet_since",
        "_reply_to_head", "_rests_since", "_result", "_served", "_sink", "_transport", "deadline",
        "is_reusable", "keep_alive_seconds", "last_byte_at", "sent_at", "waits_since",
    )  # fmt: skip

    def __init__(
        self,
        deadlines: Deadlines,
        memory: HeadMemory[ReplyHead],
        first_byte_seconds: float,
        pause_seconds: float,
    ) -> None:
        self._deadlines = deadlines
        self._head_reader = ReplyHeadReader(memory)
        self._first_byte_seconds = first_byte_seconds
        self._pause_seconds = pause_seconds
        self._clock = deadlines.clock
        self.deadline = NEVER
        self.last_byte_at = self.sent_at = 0.0
        self.waits_since = NEVER
        self.is_reusable = False
        self.keep_alive_seconds: int | None = None
        self._served = 0  # above 0 the backend may have closed the connection as idle
        self._transport: asyncio.Transport
        self._poll = select.poll()
        self._sink: ReplySink | None = None
        self._result: Completion[HeldReply | None] | None = None
        self._held_statuses = _NO_STATUSES
        self._held_rest: bytes | None = None  # what came with the header section of a held reply; None: none is held
        self._reply_to_head = False  # the request was a HEAD, so its reply has no body
        self._head: ReplyHead | None = None
        self._body: ChunkedBody | None = None
        self._pass_through: PassThrough | None = None  # takes the next whole chunk directly
        self._noted_bytes = 0  # of the reply, when last looked at
        self._rests_since = 0.0
        self._quiet_since = 0.0  # since when it could have sent more and did not
        self._look_seconds = min(_LOOK_SECONDS, pause_seconds / 4)
        self._missing = -1  # bytes of a body of known length still to come; -1: it ends with the connection

    @property
    def exchange(self) -> Exchange | None:
        """The request of a client that it serves now; ``None``: it is idle, or serves a question of our own."""
        sink = self._sink
        if isinstance(sink, LateReply):
            return sink.exchange
        return sink if isinstance(sink, Exchange) else None

    @property
    def has_begun(self) -> bool:
        """The reply's header section is here."""
        return self._head is not None

    @property
    def is_answering_well(self) -> bool:
        """It is, and it says nothing of a failure."""
        return self._head is not None and self._head.status < 400

    def request(
        self,
        blocks: list[bytes],
        sink: ReplySink,
        *,
        is_head: bool,
        held_statuses: frozenset[int] = _NO_STATUSES,
    ) -> Completion[HeldReply | None]:
        """Send a whole request; its reply goes to ``sink``.

        Args:
            blocks: header section and body.
            sink: where the reply goes; this connection becomes its source.
            is_head: the request's method is HEAD.
            held_statuses: replies with these go nowhere before :meth:`accept` says so.

        Returns:
            Done when the reply is complete, with ``None``; or when it is held. Fails with :class:`BackendBroke`,
            :class:`BackendTimeout` or :class:`InvalidReply`. If it is cancelled, :meth:`abort` must follow.
        """
        self._sink = sink
        sink.source = self
        self._reply_to_head = is_head
        self._held_statuses = held_statuses
        self.is_reusable = False
        self._head = self._body = None
        self._head_reader.restart()
        self._result = Completion()
        self.sent_at = self.waits_since = now = self._clock()
        self.deadline = now + self._first_byte_seconds
        self._transport.writelines(blocks)
        return self._result

    def accept(self) -> Completion[HeldReply | None]:
        """Let the held reply go to its sink. Returns what :meth:`request` does."""
        sink, head, rest = cast(ReplySink, self._sink), cast(ReplyHead, self._head), self._held_rest or b""
        self._held_rest = None
        result: Completion[HeldReply | None] = Completion()
        self._result = result
        self._transport.resume_reading()
        try:
            self._open(sink, head, rest)
        except (InvalidReply, InvalidChunk) as error:
            self._refuse(error)
        return result

    def give_up(self, error: BackendError) -> None:
        """End the request under way with ``error``; the backend sees its client leave."""
        self._fail(error)

    def is_stale(self) -> bool:
        """Whether an idle connection must not be used: the backend has closed it, or said something unasked."""
        if self._transport.is_closing():
            return True
        # What has come since the event loop last looked, it does not know; of so short a time that is not worth a call.
        return self._clock() - self._rests_since > _FRESH_SECONDS and bool(self._poll.poll(0))

    def rest(self, seconds: float) -> None:
        """Stay open without a request, for so long at most."""
        self._rests_since = now = self._clock()
        self.deadline = now + seconds

    def abort(self) -> None:
        """Close at once, telling nobody; the backend sees its client leave."""
        self._sink = self._result = self._pass_through = self._held_rest = None
        self._transport.abort()

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for a request."""
        self._transport = cast(asyncio.Transport, transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._deadlines.watch(self)

    def data_received(self, data: bytes) -> None:
        """Relay what the backend sent."""
        # The way of every streamed token, in one frame: no clock, no call and no check more than it takes to know
        # that this is exactly one whole chunk.
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
            self._transport.abort()  # it spoke without being asked
            return
        try:
            if self._body is not None:
                self._relay_chunked(sink, self._body, data)
            elif self._head is not None:
                self._relay(sink, data)
            else:
                self._read_head(sink, data)
        except (InvalidReply, InvalidChunk) as error:
            self._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """The backend closed the connection, or broke it."""
        self._deadlines.forget(self)
        sink = self._sink
        if sink is None:
            return
        if exc is None and self._head is not None and self._body is None and self._missing < 0:
            self._complete(sink)
        else:
            message = "The backend closed the connection before its reply was complete."
            is_stale = self._served > 0 and self._head is None
            self._fail(BackendBroke(message, on_reused_connection=is_stale))

    def on_deadline(self, now: float) -> None:
        """Look whether the backend has been silent for too long, or the connection idle for long enough."""
        sink = self._sink
        if sink is None:
            self._transport.close()
            self.deadline = NEVER
        elif self._head is None:
            self._fail(BackendTimeout("The backend did not answer in time."))
        elif sink.sent_bytes != self._noted_bytes:
            self._note_progress(sink, now)
        elif now - self._quiet_since >= self._pause_seconds:
            self._fail(BackendTimeout("The backend stopped in the middle of its reply."))
        else:
            self.deadline = now + self._look_seconds

    def look(self, now: float) -> None:
        """Note whether the reply has gone on since the last look."""
        sink = self._sink
        if sink is not None and self._head is not None and sink.sent_bytes != self._noted_bytes:
            self._noted_bytes = sink.sent_bytes
            self.last_byte_at = self._quiet_since = now

    def _note_progress(self, sink: ReplySink, now: float) -> None:
        self._noted_bytes = sink.sent_bytes
        self.last_byte_at = self._quiet_since = now
        self.deadline = now + self._look_seconds

    # --- back-pressure

    def pause_reading(self) -> None:
        """The client is behind. Its own deadline counts meanwhile, not the backend's."""
        if self._sink is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            if self._sink.sent_bytes != self._noted_bytes:  # the next look may be far away
                self._note_progress(self._sink, self._clock())
            self.deadline = self.waits_since = NEVER

    def resume_reading(self) -> None:
        """The client has caught up."""
        if self._sink is not None and self._held_rest is None and not self._transport.is_closing():
            self._transport.resume_reading()
            # It could not be heard before; that it was alive is not known.
            self._quiet_since = self.waits_since = self._clock()
            self.deadline = self._quiet_since + self._look_seconds

    # --- the reply

    def _read_head(self, sink: ReplySink, data: bytes) -> None:
        found = self._head_reader.feed(data)
        if found is not None:  # else the deadline stays: a header section that drips is late all the same
            self._begin(sink, *found)

    def _begin(self, sink: ReplySink, head: ReplyHead, rest: bytes) -> None:
        self._head = head
        self._missing = -1 if head.content_length is None else head.content_length
        if head.status in self._held_statuses:
            self._hold(head, rest)
        else:
            self._open(sink, head, rest)

    def _hold(self, head: ReplyHead, rest: bytes) -> None:
        self._transport.pause_reading()
        self.deadline = NEVER  # who asked for it decides at once
        self._held_rest = rest
        result, self._result = self._result, None
        if result is not None and not result.done():
            result.set_result(HeldReply(head.status, head.passed_on))

    def _open(self, sink: ReplySink, head: ReplyHead, rest: bytes) -> None:
        missing = self._missing
        has_no_body = self._reply_to_head or head.status in _BODILESS
        if missing == len(rest) and not has_no_body:  # as most do that are no streams, it came in one piece
            sink.write_whole(head.status, head.reason, head.passed_on, rest)
            self.last_byte_at = self._clock()
            self._complete(sink)
            return
        sink.begin(head.status, head.reason, head.passed_on, None if missing < 0 else missing)
        self._note_progress(sink, self._clock())
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

    def _relay_chunked(self, sink: ReplySink, body: ChunkedBody, data: bytes) -> None:
        chunks = sink.chunks
        if chunks is None or not body.whole_chunks(data):
            for piece in body.feed(data):
                sink.write(piece)
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

    def _refuse(self, error: InvalidReply | InvalidChunk) -> None:
        chunked = InvalidReply("The backend's chunked reply is malformed.")
        self._fail(chunked if isinstance(error, InvalidChunk) else error)

    def _fail(self, error: BackendError) -> None:
        result = self._result
        self._sink = self._result = self._pass_through = self._held_rest = None
        self._transport.abort()
        if result is not None and not result.done():
            result.set_exception(error)
