"""One request and its reply, as both sides of the proxy see it."""

from __future__ import annotations

import re
from collections.abc import Callable
from email.utils import formatdate
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Protocol

from inference_engine_proxy_server.errors import ProxyError, error_body, error_fields, stream_error_event
from inference_engine_proxy_server.wire.framing import ChunkedBody, last_chunk, one_chunk
from inference_engine_proxy_server.wire.reply_tail import ReplyTail
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["ClientSide", "Exchange", "Outcome", "ReplySource", "date_field", "is_event_stream"]

_EVENT_STREAM = re.compile(rb"(?:^|\n)content-type:[ \t]*text/event-stream", re.IGNORECASE)
_ENCODED = re.compile(rb"(?:^|\n)content-encoding:", re.IGNORECASE)
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_STREAM_FIELDS = b"content-type: text/event-stream\r\ncache-control: no-cache\r\n"
_BODILESS = frozenset({204, 304})
_PREFLIGHT_PASSED = (
    b"access-control-allow-origin: *\r\naccess-control-allow-methods: *\r\n"
    b"access-control-allow-headers: authorization, *\r\n"  # the wildcard does not stand for this one (Fetch standard)
)
_REASONS = {status.value: f" {status.phrase}".encode() for status in HTTPStatus}


def date_field() -> bytes:
    """The ``Date`` line that RFC 9110, 6.6.1, asks of replies that have their origin here."""
    return f"date: {formatdate(usegmt=True)}\r\n".encode()


def is_event_stream(fields: bytes) -> bool:
    """Whether header lines say that what follows is server-sent events, readable as they are."""
    return _EVENT_STREAM.search(fields) is not None and _ENCODED.search(fields) is None


class ReplySource(Protocol):
    """Where a reply's bytes come from; told when its reader falls behind."""

    def pause_reading(self) -> None:
        """Send no more until :meth:`resume_reading`."""

    def resume_reading(self) -> None:
        """Go on."""


class ClientSide(Protocol):
    """What an exchange needs of the connection it came on."""

    clock: Callable[[], float]

    def write(self, block: bytes) -> None:
        """Send ``block`` to the client."""

    def exchange_done(self, exchange: Exchange) -> None:
        """The reply is complete; or ``BROKEN``: it never will be, and the client must be able to tell."""


class Outcome(StrEnum):
    """How an exchange ended."""

    COMPLETE = "complete"
    BROKEN = "broken"
    """The reply had begun and could not be finished."""
    CLIENT_LEFT = "client_left"


class Exchange:
    """A whole request, and the reply to it as far as it has been sent.

    The reply is written by calling :meth:`begin` once, :meth:`write` or :meth:`write_chunks` for each piece of
    body the moment it exists, and :meth:`end`; or :meth:`respond`; or :meth:`fail` at any time.

    Attributes:
        head, body: the request, complete.
        request_id: the client's ``x-request-id`` or a new one.
        client: the client's address, for the log.
        is_counted: the limits of its sender's key count it until it is over.
        started_at: when the request was complete.
        first_byte_at: when the first byte of the reply went out; ``None`` before that.
        status: the reply's status; 0 before it began.
        sent_bytes: bytes of the reply sent so far, its header section included.
        last_block: the last of them that were sent together, without the header section.
        tail: keeps the body's first and last bytes, for who wants to read them; ``None``: nobody does. To be set
            before the reply begins.
        write_through: sends whole chunks to the client with nothing in between; who uses it keeps ``sent_bytes`` and
            ``last_block`` itself. ``None`` before the header section went out, and for a client that takes no chunks.
        model: what the request asks for, for the log; ``None``: nothing, or not known.
        wanted: what it asks of the fleet, for who places it; nothing here looks at it.
        backend: who serves it; ``None``: this proxy itself, or nobody yet.
        losses: backends that have had the request and failed it.
        is_only_told: comments of our own have been sent, as a stream of events, and nothing of a reply yet.
        extra_fields: header lines to add to the reply, each ending in CRLF.
        limit_fields: those of them that every reply to this client has, errors too.
        keep_alive: the client's connection stays open after this exchange.
        takes_chunks: :meth:`write_chunks` may be used; else only :meth:`write`.
        source: told to pause when the client reads slower than the reply comes; ``None``: nobody.
        outcome: how the exchange ended; ``COMPLETE`` until something else is known.
        done: nothing more can be sent.
    """

    __slots__ = (
        "_body_allowed",
        "_chunked",
        "_connection",
        "_fields",
        "_length_known",
        "_pending_head",
        "_write",
        "backend",
        "body",
        "client",
        "done",
        "extra_fields",
        "first_byte_at",
        "head",
        "is_counted",
        "is_only_told",
        "keep_alive",
        "last_block",
        "limit_fields",
        "losses",
        "model",
        "outcome",
        "request_id",
        "sent_bytes",
        "source",
        "started_at",
        "status",
        "tail",
        "takes_chunks",
        "wanted",
        "write_through",
    )  # fmt: skip

    def __init__(self, connection: ClientSide, head: RequestHead, body: bytes, request_id: str, client: str) -> None:
        self._connection = connection
        self._write = connection.write
        self.head = head
        self.body = body
        self.request_id = request_id
        self.client = client
        self.keep_alive = head.keep_alive
        self.started_at = connection.clock()
        self.first_byte_at: float | None = None
        self.status = 0
        self.sent_bytes = 0
        self.model: str | None = None
        self.wanted: Any = None
        self.backend: str | None = None
        self.losses = 0
        self.is_only_told = False
        self.extra_fields = b""
        self.limit_fields = b""
        self.is_counted = False
        self.source: ReplySource | None = None
        self.done = False
        self.takes_chunks = False
        self.outcome = Outcome.COMPLETE
        self._length_known = False
        self._chunked = False
        self._body_allowed = True
        self._fields = b""
        self._pending_head = b""
        self.last_block = b""
        self.write_through: Callable[[bytes], None] | None = None
        self.tail: ReplyTail | None = None

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection tells the client that the body is complete."""
        return self._body_allowed and not self._length_known and not self.takes_chunks

    @property
    def begun(self) -> bool:
        """Whether a byte of the reply has been sent, so that it can no longer become another reply."""
        return self.first_byte_at is not None

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Open the reply. Its header section goes out with the first piece of body, or at :meth:`flush`.

        Args:
            status: final status, 200-999.
            reason: reason phrase with its leading blank; may be empty.
            fields: header lines, each ending in CRLF, none of them about the connection or the framing.
            content_length: the body's length in bytes; ``None`` when it is not known yet.
        """
        self.status = status
        self._fields = fields
        head = self.head
        http11 = head.minor_version == 1
        framing = b""
        self._body_allowed = status not in _BODILESS and head.method != "HEAD"
        self._length_known = content_length is not None
        self.takes_chunks = self._chunked = False
        if content_length is not None:
            if status != 204:
                framing = b"content-length: %d\r\n" % content_length
        elif self._body_allowed:
            self.takes_chunks = self._chunked = http11
            if http11:
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self.keep_alive = False
        self._pending_head = self._section(status, reason, fields, framing)

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        """Open the reply and send its whole body, as :meth:`begin` and :meth:`write` would, for less."""
        if status in _BODILESS or not body or self.head.method == "HEAD":
            self.begin(status, reason, fields, len(body))
            return
        self.status = status
        self._fields = fields
        self._length_known = True
        self.takes_chunks = self._chunked = False  # as what has been opened for nothing may have left them
        self._pending_head = b""
        if self.tail is not None:
            self.tail.take(body)
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
        return b"HTTP/1.1 %d%b\r\n%b%bx-request-id: %b\r\n%b\r\n" % (
            status,
            reason,
            fields,
            framing,
            self.request_id.encode(),
            self.extra_fields,
        )

    def tell(self, comment: bytes) -> None:
        """Send a comment of server-sent events ahead of the reply, whose status and kind are settled by that."""
        if not self.begun:
            self.is_only_told = True
            self.extra_fields = self.limit_fields  # the rest may name a backend that failed it
            self.begin(200, b" OK", date_field() + _STREAM_FIELDS, None)
        self.write(comment)

    def flush(self) -> None:
        """Send the header section now if it is still waiting for the body's first piece."""
        if self._pending_head:
            self._send(b"")

    def write(self, payload: bytes) -> None:
        """Send a piece of the body, not empty."""
        if self._body_allowed:
            self._send(one_chunk(payload) if self._chunked else payload)

    def write_chunks(self, block: bytes) -> None:
        """Send whole chunks as they are, the last one not among them. Needs ``takes_chunks``."""
        self._send(block)

    def write_last_chunks(self, block: bytes) -> None:
        """Send whole chunks as they are, the last one at their end. Needs ``takes_chunks``."""
        self._chunked = False
        self._send(block)

    def end(self) -> None:
        """The body is complete."""
        if self.done:  # the client left while the last bytes were on their way
            return
        if self._chunked:
            self._send(last_chunk)
        elif self._pending_head:
            self._send(b"")
        self.done = True
        self._connection.exchange_done(self)

    def respond(self, status: int, fields: bytes, body: bytes) -> None:
        """Send a whole reply of our own; ``fields`` as in :meth:`begin`, ``Date`` is added."""
        self.write_whole(status, _REASONS.get(status, b" "), date_field() + fields, body)
        self.end()

    def pass_preflight(self) -> None:
        """Let a browser's page send its request; that may still be refused."""
        self.respond(204, _PREFLIGHT_PASSED, b"")

    def fail(self, error: ProxyError) -> None:
        """Answer with ``error``; or, when the reply has begun, end it so that its reader can tell it is broken.

        A stream of server-sent events that stands between two events gets one that says so. The end of the body
        is never sent, and no ``[DONE]``: a clean end would look like success.
        """
        if self.done:
            return
        if not self.begun:
            self.extra_fields = self.limit_fields  # the rest says which backend answered, and none did
            self.backend = None
            if error.status >= 500 and self.head.is_preflight:
                # A browser would hide this from its page. The page can read the error of the request that follows.
                self.pass_preflight()
                return
            about = (error, self.head.path, self.request_id)
            self.respond(error.status, error_fields(*about), error_body(*about))
            return
        if self._between_events():
            self.write(stream_error_event(error, self.head.path, self.request_id))
        self.done = True
        self.outcome = Outcome.BROKEN
        self._connection.exchange_done(self)

    def client_left(self) -> None:
        """Nobody reads the reply any more; what its source still sends goes nowhere."""
        self.done = True
        self.outcome = Outcome.CLIENT_LEFT
        self._write = _discard
        if self.source is not None:
            self.source.pause_reading()  # so that none of it is written through

    def _send(self, block: bytes) -> None:
        self.last_block = block
        if self.tail is not None:
            self._keep(self.tail, block)
        if self._pending_head:
            block = self._pending_head + block
            self._pending_head = b""
            self.first_byte_at = self._connection.clock()
            if self.takes_chunks and self.tail is None:
                self.write_through = self._write
        self.sent_bytes += len(block)
        self._write(block)

    def _keep(self, tail: ReplyTail, block: bytes) -> None:
        if block:
            tail.take(block)
            if self.takes_chunks and self.write_through is None:
                self.write_through = tail.before(self._write)

    def _between_events(self) -> bool:
        if self._length_known or not is_event_stream(self._fields):
            return False
        tail = b"".join(ChunkedBody().feed(self.last_block)) if self._chunked else self.last_block
        return not tail or tail.endswith(_EVENT_ENDS)


def _discard(block: bytes) -> None:
    del block
