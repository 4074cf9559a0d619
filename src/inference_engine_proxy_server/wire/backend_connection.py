"""A connection to a backend: one request at a time, its deadlines, and back-pressure towards the backend."""

from __future__ import annotations

import asyncio
import re
import select
from typing import cast

from inference_engine_proxy_server.errors import BackendBroke, BackendError, BackendTimeout, InvalidReply
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.tasks.light_task import Completion
from inference_engine_proxy_server.wire.framing import InvalidChunk
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.reply_head import ReplyHead
from inference_engine_proxy_server.wire.reply_relay import ReplyRelay
from inference_engine_proxy_server.wire.reply_sink import HeldReply, ReplySink

__all__ = ["BackendConnection"]

_FRESH_SECONDS = 0.1  # a backend hardly ever closes a connection this soon after it agreed to keep it open
_CROSSING_SECONDS = 0.25  # round trip to another continent: a close that crosses a request arrives by then

_NO_STATUSES: frozenset[int] = frozenset()


class BackendConnection(ReplyRelay):
    """One connection, used by one request at a time.

    Args:
        deadlines: watches this connection.
        memory: cache of the last header section of a reply; shared by all connections to one backend.
        first_byte_seconds: longest wait for a reply's first byte.
        pause_seconds: longest pause within a reply.
        locations: see :class:`~.reply_head.ReplyHeadReader`.

    Attributes:
        sent_at: when the last request was sent; 0 before the first.
        waits_since: since when the connection has waited for the backend: the last request or, after a pause for a slow
            client, the end of that pause; ``inf`` during the pause.
    """

    __slots__ = ("_deadlines", "_event_due_at", "_first_byte_seconds", "_poll", "_rests_since", "waits_since")

    def __init__(
        self,
        deadlines: Deadlines,
        memory: HeadMemory[ReplyHead],
        first_byte_seconds: float,
        pause_seconds: float,
        locations: re.Pattern[bytes] | None = None,
    ) -> None:
        super().__init__(deadlines, memory, pause_seconds, locations)
        self._deadlines = deadlines
        self._first_byte_seconds = first_byte_seconds
        self._poll = select.poll()
        self._rests_since = 0.0
        self._event_due_at = NEVER
        self.waits_since = NEVER

    def __repr__(self) -> str:
        state = "idle" if self._sink is None else "replying" if self._head is not None else "waiting"
        return f"<BackendConnection {state} after {self._served} replies>"

    @property
    def has_begun(self) -> bool:
        """Whether the reply's header section has arrived."""
        return self._head is not None

    @property
    def is_unanswered(self) -> bool:
        """Whether a request waits for its reply, or for the first event of a stream."""
        return self._head is None or self._held_stream is not None

    @property
    def is_answering_well(self) -> bool:
        """Whether a reply has begun whose status is below 400; a stream begins with its first event."""
        return self._head is not None and self._head.status < 400 and self._held_stream is None

    # --- requests

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
            sink: receives the reply; this connection becomes its source.
            is_head: whether the request's method is HEAD.
            held_statuses: replies with these statuses are held until :meth:`accept`.

        Returns:
            A completion: done with ``None`` when the reply is complete, or with the reply when it is held. Fails with
            :class:`BackendBroke`, :class:`BackendTimeout` or :class:`InvalidReply`. If it is cancelled, :meth:`abort`
            must follow.
        """
        self._sink = sink
        sink.source = self
        self._reply_to_head = is_head
        self._held_statuses = held_statuses
        self.is_reusable = False
        self._head = self._body = None
        self._head_reader.restart()
        result: Completion[HeldReply | None] = Completion()
        self._result = result
        self.sent_at = self.waits_since = now = self._clock()
        self.deadline = now + self._first_byte_seconds
        if self._transport.is_closing():  # it would drop the request, or raise
            self._fail(self._why_closed())
        else:
            self._transport.writelines(blocks)
        return result

    def limit_first_event(self, seconds: float) -> None:
        """Give the reply up if a stream has sent no event within ``seconds`` of the request; ``inf`` for no limit."""
        self._event_due_at = self.sent_at + seconds
        self.deadline = min(self.deadline, self._event_due_at)

    def accept(self, sink: ReplySink) -> Completion[HeldReply | None]:
        """Relay the held reply to ``sink``. Returns what :meth:`request` returns."""
        head, rest = cast(ReplyHead, self._head), self._held_rest or b""
        self._sink = sink
        sink.source = self
        self._held_rest = None
        result: Completion[HeldReply | None] = Completion()
        self._result = result
        self._transport.resume_reading()
        try:
            self._open(sink, head, rest)
        except (InvalidReply, InvalidChunk) as error:
            self._refuse(error)
        return result

    def expect_websocket(self, accept: bytes) -> None:
        """The next request asks for a WebSocket; the reply accepts it with this ``Sec-WebSocket-Accept``.

        Such a reply, whose status is 101, must be held; :meth:`hand_over` follows, or :meth:`abort`.
        """
        self._head_reader.expected_accept = accept

    def hand_over(self, receiver: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """After a held reply with status 101: ``receiver`` gets all further bytes, and the connection serves no more.

        Returns:
            The transport, which does not read, and the bytes that followed the reply's header section.
        """
        rest = self._held_rest or b""
        self._sink = self._held_rest = None
        self._deadlines.forget(self)
        self._transport.set_protocol(receiver)
        return self._transport, rest

    def give_up(self, error: BackendError) -> None:
        """End the current request with ``error``; the backend sees a disconnect."""
        self._fail(error)

    def abort(self) -> None:
        """Close at once without an error; the backend sees a disconnect."""
        self._sink = self._result = self._pass_through = self._held_rest = self._held_stream = None
        self._transport.abort()

    # --- between requests

    def rest(self, seconds: float) -> None:
        """Stay open without a request for at most ``seconds``."""
        self._rests_since = now = self._clock()
        self.deadline = now + seconds

    @property
    def is_closed(self) -> bool:
        """Whether either side has closed the connection, as far as the event loop has seen."""
        return self._transport.is_closing()

    def is_stale(self) -> bool:
        """Whether an idle connection is unusable: the backend closed it, or sent bytes without a request."""
        if self._transport.is_closing():
            return True
        # Bytes may have arrived since the event loop's last turn. Right after a use, a system call is not worth it.
        return self._clock() - self._rests_since > _FRESH_SECONDS and bool(self._poll.poll(0))

    # --- the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is ready for a request."""
        self._transport = cast(asyncio.Transport, transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._deadlines.watch(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The backend closed or broke the connection."""
        self._deadlines.forget(self)
        sink = self._sink
        if sink is None:
            return
        ends_with_connection = self._head is not None and self._body is None and self._missing < 0
        if exc is None and ends_with_connection and self._held_stream is None:
            self._complete(sink)
        else:
            message = "The backend closed the connection before its reply was complete."
            self._fail(BackendBroke(message, crossed_request=self._may_have_crossed_request()))

    def _why_closed(self) -> BackendError:
        """Why the connection was closed before it could carry the request."""
        if self._spoke_first:
            return InvalidReply("The backend sent bytes before it had a request.")
        message = "The backend closed the connection before it had the request."
        return BackendBroke(message, crossed_request=self._may_have_crossed_request())

    def _may_have_crossed_request(self) -> bool:
        """Whether the backend may have closed the connection as idle before it received the request."""
        has_answered = self._head is not None or self._head_reader.has_begun
        return self._served > 0 and not has_answered and self._clock() - self.sent_at < _CROSSING_SECONDS

    # --- deadlines and back-pressure

    def on_deadline(self, now: float) -> None:
        """Check whether the backend has been silent for too long, or the connection idle for long enough."""
        sink = self._sink
        if sink is None:
            self._transport.close()
            self.deadline = NEVER
        elif self._head is None or (self._held_stream is not None and now >= self._event_due_at):
            self._fail(BackendTimeout("The backend did not answer in time."))
        elif sink.sent_bytes != self._progress_bytes:
            self._mark_progress(sink, now)
        elif now - self._quiet_since >= self._pause_seconds:
            self._fail(BackendTimeout("The backend stopped in the middle of its reply."))
        else:
            self.deadline = now + self._progress_seconds

    def look(self, now: float) -> None:
        """Record whether the reply has made progress since the last check."""
        sink = self._sink
        if sink is not None and self._head is not None and sink.sent_bytes != self._progress_bytes:
            self._progress_bytes = sink.sent_bytes
            self.last_byte_at = self._quiet_since = now

    def pause_reading(self) -> None:
        """The client is behind: meanwhile, its own deadline counts, not that of the backend."""
        if self._sink is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            if self._sink.sent_bytes != self._progress_bytes:  # the next check may be far away
                self._mark_progress(self._sink, self._clock())
            self.deadline = self.waits_since = NEVER

    def resume_reading(self) -> None:
        """The client has caught up."""
        if self._sink is not None and self._held_rest is None and not self._transport.is_closing():
            self._transport.resume_reading()
            # The connection did not read before, so the backend's progress is unknown.
            self._quiet_since = self.waits_since = self._clock()
            self.deadline = self._quiet_since + self._progress_seconds
