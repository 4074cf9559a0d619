"""Reply header sections: validated as a whole, parsed only where the proxy needs to."""

from __future__ import annotations

import re

from inference_engine_proxy_server.errors import InvalidReply
from inference_engine_proxy_server.wire.fields import FIELD_LINES, LENGTH, TwiceError, cut, named_by, owned_fields
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.reply_fields import is_event_stream

__all__ = ["ReplyHead", "ReplyHeadReader", "parse_reply_head"]

_HEAD_BYTES = 64 * 1024  # limit for a header section; generous, engines send less than 1 KiB
_HEAD_FIELDS = 200
_INTERIM_REPLIES = 10  # limit for 1xx replies before the final one

_BEGINNING = b"HTTP/1."
_REPLY = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])((?: [\t\x20-\x7e\x80-\xff]*+)?)\r\n" + FIELD_LINES)
_OWNED = owned_fields(rb"content-length|x-backend|x-request-id")
_SWITCH = owned_fields(rb"sec-websocket-accept")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout=([0-9]{1,6})")


class ReplyHead:
    """A validated header section of a backend's reply.

    Attributes:
        status: 100-999; 101 only for a WebSocket that was asked for, as the end of HTTP on its connection.
        reason: the reason phrase as sent, with the space before it.
        keep_alive: the backend will keep the connection open.
        keep_alive_seconds: the idle timeout that the backend announces; ``None`` if it announces none.
        content_length: bytes of the body; ``None`` if the body is chunked or ends with the connection.
        chunked: the body is chunked.
        passed_on: the field lines to forward, as sent, each ending in CRLF.
        opens_stream: status 200 and a stream of server-sent events without a content coding.
    """

    __slots__ = (
        "chunked", "content_length", "keep_alive", "keep_alive_seconds", "opens_stream", "passed_on", "reason",
        "status",
    )  # fmt: skip

    status: int
    reason: bytes
    keep_alive: bool
    keep_alive_seconds: int | None
    content_length: int | None
    chunked: bool
    passed_on: bytes
    opens_stream: bool


def parse_reply_head(section: bytes) -> ReplyHead:
    """Parse a reply's header section, from the status line to the last field's CRLF.

    Raises:
        InvalidReply: not valid HTTP/1.1.
    """
    match = _REPLY.fullmatch(section)
    if match is None:
        raise InvalidReply("The backend's reply is not valid HTTP.")
    head = ReplyHead()
    head.status = int(match[2])
    head.reason = match[3] or b" "
    try:
        head.passed_on, owned = cut(section[match.start(4) - 1 :], _OWNED)
    except TwiceError as error:
        raise InvalidReply("The backend's reply has contradictory header fields.") from error
    head.opens_stream = head.status == 200 and is_event_stream(head.passed_on)
    minor_version = match[1][0] - 48
    connection = owned.get(b"connection", b"").lower()
    head.keep_alive = b"close" not in connection if minor_version else b"keep-alive" in connection
    timeout = _KEEP_ALIVE_TIMEOUT.search(owned.get(b"keep-alive", b""))
    head.keep_alive_seconds = int(timeout[1]) if timeout else None

    length = owned.get(b"content-length")
    coding = owned.get(b"transfer-encoding")
    if coding is not None and (length is not None or coding.lower() != b"chunked"):
        raise InvalidReply("The backend's reply has contradictory or unknown framing.")
    if length is not None and not LENGTH.fullmatch(length):
        raise InvalidReply("The backend's reply has an invalid Content-Length.")
    head.chunked = coding is not None
    head.content_length = int(length) if length is not None else None
    if head.status == 204 and (head.chunked or length is not None):
        head.keep_alive = False  # 204 has no body, but the reply announces one: do not trust what follows
    if head.chunked and not minor_version:
        head.keep_alive = False  # RFC 9112, 6.1: do not trust chunked framing from an HTTP/1.0 sender
    return head


class ReplyHeadReader:
    """Extracts the final reply's header section from the bytes that a backend sends.

    Args:
        memory: cache of the last section, shared by all connections to one backend.
        locations: finds what field lines say of the backend's own address, before the path; ``None`` to leave it.

    Attributes:
        expected_accept: ``Sec-WebSocket-Accept`` of a reply that accepts the request's WebSocket; ``None`` if it asks
            for none.
    """

    __slots__ = ("_interim", "_locations", "_memory", "_received", "expected_accept")

    def __init__(self, memory: HeadMemory[ReplyHead], locations: re.Pattern[bytes] | None = None) -> None:
        self._memory = memory
        self._locations = locations
        self._received = b""  # start of an incomplete section
        self._interim = 0
        self.expected_accept: bytes | None = None

    def restart(self) -> None:
        """Prepare for the reply to the next request."""
        self._received = b""
        self._interim = 0

    @property
    def has_begun(self) -> bool:
        """Whether bytes of an incomplete reply have arrived."""
        return bool(self._received) or self._interim > 0

    def feed(self, data: bytes) -> tuple[ReplyHead, bytes] | None:
        """Parse the connection's next bytes.

        Returns:
            The complete header section and the bytes after it; ``None`` while the section is incomplete.

        Raises:
            InvalidReply: the section is not valid HTTP or too long, or the backend sent an unsolicited interim reply.
        """
        received = self._received + data if self._received else data
        while (end := received.find(b"\r\n\r\n", 0, _HEAD_BYTES)) >= 0:
            head = self._read(received[: end + 2])
            if head.status >= 200:
                self._received = b""
                return head, received[end + 4 :]
            self._check_interim(head, received[: end + 2])
            received = received[end + 4 :]
            if head.status == 101:
                return head, received
        is_http = received.startswith(_BEGINNING) or _BEGINNING.startswith(received)
        # Another protocol must not wait for the end of a section, which may never come.
        if not is_http or len(received) > _HEAD_BYTES or received.count(b"\n") != received.count(b"\r\n"):
            raise InvalidReply("The backend's reply is not valid HTTP.")
        self._received = received
        return None

    def _check_interim(self, head: ReplyHead, section: bytes) -> None:
        self._interim += 1
        if self._interim > _INTERIM_REPLIES or (head.status == 101 and self.expected_accept is None):
            raise InvalidReply("The backend sent an unsolicited interim reply.")
        if head.status == 101 and not _switches(head, section, self.expected_accept):
            raise InvalidReply("The backend's reply to the WebSocket handshake is invalid.")

    def _read(self, section: bytes) -> ReplyHead:
        head = self._memory.recall(section)
        if head is None:
            if section.count(b"\n") > _HEAD_FIELDS + 1:  # one for the status line
                raise InvalidReply("The backend's reply has too many header fields.")
            head = parse_reply_head(section)
            if self._locations is not None:  # a client cannot reach the backend; a path is relative to the proxy
                head.passed_on = self._locations.sub(rb"\1/", head.passed_on)
            self._memory.remember(section, head)
        return head


def _switches(head: ReplyHead, section: bytes, expected_accept: bytes | None) -> bool:
    """Whether a reply with status 101 switches to WebSocket, and answers the handshake of its request."""
    try:
        _, fields = cut(section[section.index(b"\n") :], _SWITCH)
    except TwiceError:
        return False
    return (
        section.startswith(b"HTTP/1.1 ")
        and not head.chunked
        and not head.content_length
        and b"upgrade" in named_by(fields.get(b"connection", b""))
        and fields.get(b"upgrade", b"").lower() == b"websocket"
        and fields.get(b"sec-websocket-accept") == expected_accept
    )
