"""A reply's header section: checked as a whole, read where we must."""

from __future__ import annotations

import re

from inference_engine_proxy_server.errors import InvalidReply
from inference_engine_proxy_server.wire.fields import FIELD_LINES, LENGTH, TwiceError, cut, owned_fields

__all__ = ["ReplyHead", "parse_reply_head"]

_REPLY = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])((?: [\t\x20-\x7e\x80-\xff]*+)?)\r\n" + FIELD_LINES)
_OWNED = owned_fields(rb"content-length|x-backend|x-request-id")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout=([0-9]{1,6})")


class ReplyHead:
    """A backend's reply's header section, checked.

    Attributes:
        status: 100-999.
        reason: the reason phrase as sent, with the blank before it.
        keep_alive: the backend will keep the connection open.
        keep_alive_seconds: how long it says it will; ``None`` when it does not say.
        content_length: bytes of the body; ``None`` when chunked or ended by the connection's end.
        chunked: the body comes in chunks.
        passed_on: the other fields' lines as sent, each ending in CRLF.
    """

    __slots__ = ("chunked", "content_length", "keep_alive", "keep_alive_seconds", "passed_on", "reason", "status")

    status: int
    reason: bytes
    keep_alive: bool
    keep_alive_seconds: int | None
    content_length: int | None
    chunked: bool
    passed_on: bytes


def parse_reply_head(section: bytes) -> ReplyHead:
    """Read a reply's header section: from the status line to the last field's CRLF.

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
        head.keep_alive = False  # it has no body, and says that it has one: what comes next is not to be trusted
    if head.chunked and not minor_version:
        head.keep_alive = False  # RFC 9112, 6.1: framing from an HTTP/1.0 sender is not to be trusted further
    return head
