"""One request and its reply, as both sides of the proxy see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from inference_engine_proxy_server.errors import ProxyError
from inference_engine_proxy_server.wire.client_side import ClientReceiver, ClientSide
from inference_engine_proxy_server.wire.error_replies import error_body, error_fields, stream_error_event
from inference_engine_proxy_server.wire.framing import last_chunk, one_chunk
from inference_engine_proxy_server.wire.outcome import CLIENT_GONE, Outcome
from inference_engine_proxy_server.wire.reply_ends import Blocks, ends_of, with_block
from inference_engine_proxy_server.wire.reply_excerpt import ReplyExcerpt
from inference_engine_proxy_server.wire.reply_fields import date_field, ends_between_events, is_event_stream
from inference_engine_proxy_server.wire.reply_observers import ReplyObservers
from inference_engine_proxy_server.wire.reply_sink import ReplySource
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["Exchange"]

# The last field makes nginx forward comments at once (ngx_http_proxy_module, proxy_buffering); it removes the field.
_STREAM_FIELDS = b"content-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
_UPGRADE_FIELDS = b"connection: upgrade\r\nupgrade: websocket\r\n"
_BODILESS = frozenset({101, 204, 304})
_REASONS = {status.value: f" {status.phrase}".encode() for status in HTTPStatus}


class Exchange:
    """A complete request, and the state of the reply to it.

    A reply is written by calling :meth:`begin` once, :meth:`write` or :meth:`write_chunks` for each piece of the body
    as soon as it exists, and :meth:`end`; or by :meth:`respond`; or by :meth:`fail` at any time.
    It has many public attributes, so that a request needs one object on the hot path instead of three.

    Attributes:
        head, body: the complete request. started_at: when it was complete.
        request_id: the client's ``x-request-id``, or a new one. client: the client's address, for the log.
        first_byte_at: when the reply (a stream: its first event) was first sent; ``None`` before; comments set it, too.
        status: the reply's status; 0 before it began. After comments, which have status 200: that of the reply itself.
        sent_bytes: bytes of the reply sent so far, header section included. last_block: the latest block of the body.
        write_through: sends whole chunks to the client directly; set when :attr:`pass_through` is.
        common_fields: header lines of every reply to this request, errors included. Each line ends in CRLF.
        backend_fields: header lines of a reply from a backend only.
        has_only_comments: only SSE comments of the proxy have been sent, nothing of a reply.
        keep_alive: whether the client's connection stays open. takes_chunks: whether the client takes a chunked body.
        source: paused while the client reads slower than the reply arrives; ``None`` when the reply has no source.
        outcome: how it ended; ``COMPLETE`` until something else is known. done: nothing more can be sent.
        termination: why it ended: ``complete``, ``client_left``, or the code of the error that it was answered with.
        excerpt: of the reply, at its end; ``None`` if no observer has kept one.
    """

    write_through: Callable[[bytes], None]
    _fields: bytes  # set with the reply's status, as the next one
    _length_known: bool

    __slots__ = (
        "_body_allowed", "_chunked", "_connection", "_earlier_blocks", "_fields", "_is_passing_through",
        "_length_known", "_observers", "_pending_head", "_write", "backend_fields", "body", "client", "common_fields",
        "done", "excerpt", "first_byte_at", "has_only_comments", "head", "keep_alive", "last_block", "outcome",
        "request_id", "sent_bytes", "source", "started_at", "status", "takes_chunks", "termination", "write_through",
    )  # fmt: skip

    def __init__(self, connection: ClientSide, head: RequestHead, body: bytes, request_id: str, client: str) -> None:
        self._connection = connection
        self._write: Callable[[bytes], None] = connection.write
        self.head = head
        self.body = body
        self.request_id = request_id
        self.client = client
        self.keep_alive = head.keep_alive
        self.started_at = connection.clock()
        self.first_byte_at: float | None = None
        self.status = 0
        self.sent_bytes = 0
        self.common_fields = self.backend_fields = self.last_block = self._pending_head = b""
        self.source: ReplySource | None = None
        self.has_only_comments = self.done = self.takes_chunks = self._chunked = self._is_passing_through = False
        self._body_allowed = True
        self.outcome = Outcome.COMPLETE
        self.termination = "complete"
        self.excerpt: ReplyExcerpt | None = None
        self._earlier_blocks: Blocks = ()
        self._observers: ReplyObservers | None = None

    def __repr__(self) -> str:
        state = "done" if self.done else "begun" if self.begun else "waiting"
        return f"<{type(self).__name__} {self.head.method} {self.head.path} {self.request_id} {state} {self.status}>"

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection tells the client that the body is complete."""
        return self._body_allowed and not self._length_known and not self.takes_chunks

    @property
    def begun(self) -> bool:
        """Whether a byte of the reply has been sent, so that the reply can no longer be replaced."""
        return self.first_byte_at is not None

    @property
    def pass_through(self) -> Exchange | None:
        """The exchange itself once whole chunks may go directly to :attr:`write_through`.

        ``None`` before the header section was sent, and for a client that takes no chunks.
        """
        return self if self._is_passing_through else None

    @property
    def chunks(self) -> Exchange | None:
        """The exchange itself if whole chunks may be written as they are, else ``None``."""
        return self if self.takes_chunks else None

    @property
    def observers(self) -> ReplyObservers:
        """The reply's observers. They must be added before the reply begins."""
        if self._observers is None:
            self._observers = ReplyObservers(self)
        return self._observers

    @property
    def is_stream(self) -> bool:
        """Whether the reply, which has begun, is a stream of events."""
        return not self._length_known and is_event_stream(self._fields)

    @property
    def ends(self) -> bytes:
        """Both ends of the body, see :func:`~.reply_ends.ends_of`."""
        return ends_of(self._earlier_blocks, self.last_block, is_chunked=self.takes_chunks)

    @property
    def reports(self) -> bytes:
        """The parts of the body in which engines report facts, at the end of the reply: as the engine sent them."""
        return self.ends if self.excerpt is None else self.excerpt.read()

    def pause_new_source(self) -> None:
        """Pause a source that has replaced a paused one: the connection only reports when the client falls behind."""
        if self.source is not None and self._connection.is_behind:
            self.source.pause_reading()

    # --- the reply

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Open the reply. Its header section goes out with the first piece of the body, or at :meth:`flush`.

        Args:
            status: final status, 200-999.
            reason: reason phrase with its leading blank; may be empty.
            fields: header lines, each ending in CRLF, none of them about the connection or the framing.
            content_length: the body's length in bytes; ``None`` when it is not known yet.
        """
        self.status = status
        self._fields = fields
        framing = b""
        self._body_allowed = status not in _BODILESS and not self.head.is_head
        self._length_known = content_length is not None
        self.takes_chunks = self._chunked = False
        if content_length is not None:
            if status != 204:
                framing = b"content-length: %d\r\n" % content_length
        elif self._body_allowed:
            self.takes_chunks = self._chunked = self.head.minor_version == 1
            if self._chunked:
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self.keep_alive = False
        self._pending_head = self._section(status, reason, fields, framing)

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        """Open the reply and send its whole body: :meth:`begin` and :meth:`write` in one block."""
        if status in _BODILESS or not body or self.head.is_head:
            self.begin(status, reason, fields, len(body))
            return
        self.status = status
        self._fields = fields
        self._length_known = True
        if self._pending_head:  # a reply was opened and not sent
            self._pending_head = b""
            self.takes_chunks = self._chunked = False
        if self._observers is not None:
            self._observers.show(body)
        self.last_block = body
        self.first_byte_at = self._connection.clock()
        block = self._section(status, reason, fields, b"content-length: %d\r\n" % len(body)) + body
        self.sent_bytes = len(block)
        self._write(block)

    def _section(self, status: int, reason: bytes, fields: bytes, framing: bytes) -> bytes:
        if not self.keep_alive:
            framing += b"connection: close\r\n"
        elif self.head.minor_version == 0:
            framing += b"connection: keep-alive\r\n"
        return b"HTTP/1.1 %d%b\r\n%b%bx-request-id: %b\r\n%b%b\r\n" % (
            status,
            reason,
            fields,
            framing,
            self.request_id.encode(),
            self.common_fields,
            self.backend_fields,
        )

    def switch_protocols(self, fields: bytes, receiver: ClientReceiver) -> tuple[asyncio.Transport, bytes]:
        """Open the client's WebSocket; ``fields`` as in :meth:`begin`, the rest as in :class:`.ClientSide`."""
        self.keep_alive = True  # the field Connection must not say "close", too
        self.begin(101, _REASONS[101], _UPGRADE_FIELDS + fields, None)
        self.keep_alive = False
        self.flush()
        return self._connection.switch_protocols(receiver)

    def send_comment(self, comment: bytes) -> None:
        """Send SSE comments ahead of the reply. The first ones commit the reply to status 200 and an event stream."""
        if not self.begun:
            self.has_only_comments = True
            self.backend_fields = b""  # they may name a backend whose attempt failed
            self.begin(200, b" OK", date_field() + _STREAM_FIELDS, None)
        observers, self._observers = self._observers, None  # comments are no part of the reply
        self.write(comment)
        self._observers = observers
        if self.source is not None:
            self.source.comment_sent()
        self._connection.comment_sent()

    def end_comments(self) -> None:
        """The reply itself follows the comments."""
        self.has_only_comments = False
        self._earlier_blocks = ()
        self.first_byte_at = self._connection.clock()

    def flush(self) -> None:
        """Send the header section now if it still waits for the first piece of the body."""
        if self._pending_head:
            self._send(b"")

    def write(self, payload: bytes) -> None:
        """Send a piece of the body, not empty."""
        if self._body_allowed:
            self._send(one_chunk(payload) if self._chunked else payload)

    def write_chunks(self, block: bytes) -> None:
        """Send whole chunks unchanged, without the last chunk. Requires ``takes_chunks``."""
        self._send(block)

    def write_last_chunks(self, block: bytes) -> None:
        """Send whole chunks unchanged, including the last chunk. Requires ``takes_chunks``."""
        self._chunked = False
        self._send(block)

    def end(self) -> None:
        """The body is complete."""
        if self.done:  # the client disconnected during the last bytes
            return
        if self._chunked:
            self._send(last_chunk)
        elif self._pending_head:
            self._send(b"")
        self.done = True
        if self._observers is not None:
            self._finish(Outcome.COMPLETE)
        self._connection.exchange_done(self)

    def respond(self, status: int, fields: bytes, body: bytes) -> None:
        """Send a whole reply of the proxy's own; ``fields`` as in :meth:`begin`, ``Date`` is added."""
        self.write_whole(status, _REASONS.get(status, b" "), date_field() + fields, body)
        self.end()

    def fail(self, error: ProxyError) -> None:
        """Answer with ``error``. If the reply has begun, end it so that the client can see that it is broken.

        If an event stream is between two events, an error event is sent. The end of the body and ``[DONE]`` are never
        sent: a clean end would look like success.
        """
        if self.done:
            return
        self.termination = error.code
        if not self.begun:
            self.backend_fields = b""
            about = (error, self.head.path, self.request_id)
            self.respond(error.status, error_fields(*about), error_body(*about))
            return
        if self.has_only_comments:
            self.status = error.status
        is_stream = self.is_stream
        self._finish(Outcome.BROKEN)
        if is_stream and ends_between_events(self.last_block, is_chunked=self._chunked):
            self.write(stream_error_event(error, self.head.path, self.request_id))
        self._connection.exchange_done(self)

    def client_left(self) -> None:
        """The client has disconnected. What the source still sends is discarded."""
        self._write = _discard
        if self.source is not None:
            self.source.pause_reading()  # stops the direct path, too
        self.termination = "client_left"
        self._finish(Outcome.CLIENT_LEFT)
        if not self.begun or self.has_only_comments:
            self.status = CLIENT_GONE

    def _finish(self, outcome: Outcome) -> None:
        self.done = True
        self.outcome = outcome
        if (observers := self._observers) is not None:
            self._observers = None
            self.write_through = _discard  # observers refer to the exchange: a reference cycle
            self.excerpt = observers.find(ReplyExcerpt)
            observers.end(outcome)

    def _send(self, block: bytes) -> None:
        if self._observers is not None and block:
            block = self._observers.show(block)
        self._earlier_blocks = with_block(self._earlier_blocks, self.last_block, block)
        self.last_block = block
        if self._pending_head:
            self.first_byte_at = self._connection.clock()
            self._allow_direct_path(block)
            block = self._pending_head + block
            self._pending_head = b""
        elif not self._is_passing_through:
            self._allow_direct_path(block)
        self.sent_bytes += len(block)
        self._write(block)

    def _allow_direct_path(self, block: bytes) -> None:
        """Let whole chunks bypass the exchange once every observer has seen the first block."""
        if not self.takes_chunks:
            return
        if self._observers is None:
            self.write_through = self._write
            self._is_passing_through = True
        elif block:
            self.write_through = self._observers.write_function(self._write)
            self._is_passing_through = True


def _discard(block: bytes) -> None:
    del block
