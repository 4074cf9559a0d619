"""A request's header section: validated as a whole, parsed only where the proxy needs it, rewritten for a backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.fields import (
    FIELD_LINES,
    LENGTH,
    TOKEN,
    TwiceError,
    cut,
    named_by,
    owned_fields,
)

__all__ = ["HeadLimits", "RequestHead", "check_lines", "parse_request_head", "valid_request_id"]

_METHOD_BYTES = 32  # the longest registered one has 16
_LONG_METHOD = re.compile(TOKEN + rb"{33}")
_METHOD = re.compile(TOKEN + rb"{1,32}+ ")
_REQUEST = re.compile(rb"(" + TOKEN + rb"{1,32}+) ([\x21\x22\x24-\x7e]++) HTTP/1\.([01])\r\n" + FIELD_LINES)
_OWNED = owned_fields(
    rb"authorization|proxy-authorization|x-api-key|api-key|x-admin-key"
    rb"|forwarded|via|x-forwarded-(?:for|host|proto)|x-real-ip"
    rb"|content-length|expect|host|http2-settings|x-request-id"
)
_WAY = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"})

_HOST = re.compile(rb"(?:[A-Za-z0-9._~\-]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{0,5})?")
_ENDS_IN_CHUNKED = re.compile(rb"(?:(?!chunked[ \t]*,)" + TOKEN + rb"++[ \t]*,[ \t]*)+chunked", re.IGNORECASE)
_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://([^/?]*)(.*)")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_STILL_HTTP = re.compile(rb"h2c?$|http/|tls/")
_ACCEPT_ENCODING = re.compile(rb"(?:^|(?<=\n))accept-encoding:[^\n]*+\n", re.IGNORECASE)
_ORIGIN = re.compile(rb"(?:^|\n)origin:[ \t]*(?:https?://)?([^\r\n]*?)[ \t]*\r", re.IGNORECASE)
_PREFLIGHT = re.compile(rb"(?:^|\n)access-control-request-method:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Upper bounds of a request's header section, in bytes and in fields."""

    line_bytes: int
    total_bytes: int
    field_count: int


class RequestHead:
    """A valid header section of a request.

    It has more than 15 attributes: each is one field or fact, and one object per request is the cheapest.

    Attributes:
        method: as sent; methods are case-sensitive. is_head: the method is HEAD, whose reply has no body.
        target: path and query as sent (origin form, or ``*``); never empty.
        path: ``target`` without its query.
        host: the Host field; empty when an HTTP/1.0 client sent none.
        minor_version: 0 or 1 of HTTP/1.x.
        keep_alive: the client wants the connection to stay open.
        content_length: bytes of the body; ``None`` when chunked or when there is no body.
        chunked: the body comes in chunks. has_body: there is a body, which may be empty.
        upgrade: the protocol other than HTTP to which the client wants to change; ``None`` if it wants none.
        expects_continue: the client waits for ``100 Continue`` before it sends the body.
        request_id: the client's own ``x-request-id`` if it is a valid one.
        authorization, api_key, azure_key: the fields ``Authorization``, ``X-Api-Key`` and ``Api-Key``; ``None`` when
            absent.
        admin_key: the field ``X-Admin-Key``, which no backend gets; ``None`` when absent.
        credentials: the lines of the first three, without those that ``Connection`` declares hop-by-hop.
        way: the forwarding fields as received: ``Via``, ``Forwarded``, ``X-Forwarded-*`` and ``X-Real-IP``, by
            lower-case name.
        passed_on: the other fields' lines as sent, each ending in CRLF.
        sender: the client's name in the log; empty before it is known.
        destination: the result of ``ClientContext.classify``, opaque here; ``None`` before the call.
        access: the result of ``ClientContext.admit`` for this section or an equal one, opaque here; ``None`` before.
        usual_protocol: see :func:`.websocket_handshake.reply_fields`; ``None`` for none.
    """

    __slots__ = (
        "access", "admin_key", "api_key", "authorization", "azure_key", "chunked", "content_length", "credentials",
        "destination", "expects_continue", "has_body", "host", "is_head", "keep_alive", "method", "minor_version",
        "passed_on", "path", "request_id", "sender", "target", "upgrade", "usual_protocol", "way",
    )  # fmt: skip

    method: str
    is_head: bool
    target: bytes
    path: str
    host: bytes
    minor_version: int
    keep_alive: bool
    content_length: int | None
    chunked: bool
    has_body: bool
    upgrade: bytes | None
    expects_continue: bool
    request_id: str | None
    authorization: bytes | None
    api_key: bytes | None
    azure_key: bytes | None
    admin_key: bytes | None
    credentials: bytes
    way: Mapping[bytes, bytes]
    passed_on: bytes
    sender: str
    destination: Any
    access: Any
    usual_protocol: bytes | None

    @property
    def is_preflight(self) -> bool:
        """Whether this is a CORS preflight request (Fetch standard)."""
        return self.method == "OPTIONS" and _PREFLIGHT.search(self.passed_on) is not None

    @property
    def is_cross_origin(self) -> bool:
        """Whether the request comes from a page of another origin, or of one that a proxy in front may have renamed."""
        found = _ORIGIN.search(self.passed_on)
        return found is not None and found[1].lower() != self.host.lower()

    def with_target(self, target: bytes) -> RequestHead:
        """A copy with another query; equal header sections share one head."""
        changed = copy(self)
        changed.target = target
        return changed

    def refuse_compression(self) -> None:
        """Ask the backend for a reply without compression, so that the proxy can read it."""
        self.passed_on = _ACCEPT_ENCODING.sub(b"", self.passed_on)

    def for_backend(
        self, authority: bytes, prefix: bytes, request_id: str, body_bytes: int, *, credentials: bytes, close: bool
    ) -> bytes:
        """The header section to send to a backend, its blank line included.

        Args:
            authority: the backend's ``Host``.
            prefix: path of the backend's base URL, empty or ``/...`` without a trailing slash.
            request_id: value of ``x-request-id``.
            body_bytes: length of the body, which is always sent with a Content-Length.
            credentials: header lines that authenticate the proxy or the client; may be empty.
            close: whether the backend should close the connection after its reply.
        """
        return b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%bx-request-id: %b\r\n%b%b\r\n" % (
            self.method.encode(),
            prefix if self.target != b"*" else b"",
            self.target,
            authority,
            self.passed_on,
            credentials,
            request_id.encode(),
            b"content-length: %d\r\n" % body_bytes if self.has_body else b"",
            b"connection: close\r\n" if close else b"",
        )


def check_lines(received: bytes, limits: HeadLimits) -> None:
    """Check the lines of a header section that may be incomplete.

    Raises:
        ClientError: the section does not begin with a method, its first line is too long, or a line does not end in
            CRLF.
    """
    if len(received) > _METHOD_BYTES and not _METHOD.match(received):
        raise _no_method(received)
    if received.find(b"\n", 0, limits.line_bytes + 2) < 0 and len(received) >= limits.line_bytes + 2:
        raise ClientError("The request line is too long.", status=414, code="uri_too_long")
    if received.count(b"\n") != received.count(b"\r\n"):
        raise ClientError("The request's lines must end in CRLF.", code="malformed_request")


def parse_request_head(section: bytes, limits: HeadLimits) -> RequestHead:
    """Parse a request's header section.

    Args:
        section: from the request line to the last field's CRLF, without the blank line.

    Raises:
        ClientError: the section is invalid or exceeds a limit; the status says which.
    """
    check_lines(section, limits)
    if section.count(b"\n") > limits.field_count + 1:
        raise ClientError("The request has too many header fields.", status=431, code="headers_too_large")
    match = _REQUEST.fullmatch(section)
    if match is None:
        raise _why_refused(section)
    head = RequestHead()
    head.method = match[1].decode()
    head.is_head = head.method == "HEAD"
    head.target = target = _origin_form(match[1], match[2])
    head.path = target.partition(b"?")[0].decode()
    head.minor_version = minor_version = match[3][0] - 48
    try:
        head.passed_on, owned = cut(section[match.start(4) - 1 :], _OWNED)
    except TwiceError as error:
        raise ClientError(f"The request has two {error} fields.") from error

    host = owned.get(b"host")
    if (host is None and minor_version) or (host is not None and not _HOST.fullmatch(host)):
        raise ClientError("The request needs exactly one valid Host field.", code="invalid_host")
    head.host = host or b""
    connection = owned.get(b"connection", b"")
    head.upgrade = _other_protocol(owned[b"upgrade"], connection) if b"upgrade" in owned else None
    head.keep_alive = b"close" not in connection.lower() if minor_version else connection.lower() == b"keep-alive"
    head.request_id = valid_request_id(owned.get(b"x-request-id"))
    _read_credentials(head, owned, named_by(connection))
    head.way = {name: value for name, value in owned.items() if name in _WAY}
    head.sender = ""
    head.destination = head.access = head.usual_protocol = None
    expect = owned.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise ClientError("The only expectation understood is 100-continue.", status=417, code="expectation_failed")
    head.expects_continue = expect is not None and minor_version == 1
    _read_request_framing(head, owned)
    return head


def valid_request_id(value: bytes | None) -> str | None:
    """``value`` as text if it is safe in logs and header fields, else ``None``."""
    return value.decode() if value is not None and _REQUEST_ID.fullmatch(value) else None


def _origin_form(method: bytes, target: bytes) -> bytes:
    """The target as path and query. The authority of an absolute form is dropped: only settings name backends."""
    if method in (b"CONNECT", b"TRACE"):
        raise ClientError("This method is not supported.", status=405, code="method_not_allowed")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute is None or not _HOST.fullmatch(absolute[1]):
        raise ClientError("The request target must be a path.", code="invalid_target")
    rest = absolute[2]
    if not rest and method == b"OPTIONS":
        return b"*"  # RFC 9112, 3.2.4
    return rest if rest.startswith(b"/") else b"/" + rest


def _other_protocol(upgrade: bytes, connection: bytes) -> bytes | None:
    """The first protocol in ``Upgrade`` that is not HTTP. RFC 9110, 7.8: the field counts if ``Connection`` names it.

    Clients that offer ``h2c`` or TLS go on in HTTP/1.1 when the offer is ignored. WebSocket clients do not, so their
    field counts in any case.

    Raises:
        ClientError: a WebSocket is asked for, and ``Connection`` does not name ``Upgrade``.
    """
    protocols = [protocol.strip().lower() for protocol in upgrade.split(b",")]
    is_named = b"upgrade" in named_by(connection)
    if b"websocket" in protocols:
        if not is_named:
            message = "The Connection field of a WebSocket request must name Upgrade: a proxy in front may drop it."
            raise ClientError(message, code="invalid_websocket_request")
        return b"websocket"
    if not is_named:
        return None
    return next((protocol for protocol in protocols if protocol and not _STILL_HTTP.match(protocol)), None)


def _read_credentials(head: RequestHead, owned: dict[bytes, bytes], for_us: set[bytes]) -> None:
    head.authorization = owned.get(b"authorization")
    head.api_key = owned.get(b"x-api-key")
    head.azure_key = owned.get(b"api-key")
    head.admin_key = owned.get(b"x-admin-key")
    head.credentials = b"".join(
        b"%b: %b\r\n" % (name, owned[name])
        for name in (b"authorization", b"x-api-key", b"api-key")
        if name in owned and name not in for_us
    )


def _read_request_framing(head: RequestHead, owned: dict[bytes, bytes]) -> None:
    length = owned.get(b"content-length")
    coding = owned.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise ClientError("Content-Length beside Transfer-Encoding.", code="invalid_framing")
        if coding.lower() != b"chunked":
            # RFC 9112, 6.1: an unknown coding is 501; 6.3: an undefined length is 400
            status = 501 if _ENDS_IN_CHUNKED.fullmatch(coding) else 400
            raise ClientError("The only transfer coding understood is chunked.", status=status, code="invalid_framing")
        if not head.minor_version:
            raise ClientError("HTTP/1.0 has no transfer codings.", code="invalid_framing")
    elif length is not None and not LENGTH.fullmatch(length):
        raise ClientError("The Content-Length is not a number.", code="invalid_framing")
    head.chunked = coding is not None
    head.content_length = int(length) if length is not None else None
    head.has_body = head.chunked or length is not None


def _why_refused(section: bytes) -> ClientError:
    """The most specific error for a section that the pattern rejected."""
    if not _METHOD.match(section):
        return _no_method(section)  # the same error as for its first bytes
    line = section.partition(b"\n")[0]
    words = line.rstrip(b"\r").split(b" ")
    version = words[-1]
    if len(words) == 3 and re.fullmatch(rb"HTTP/[0-9]\.[0-9]", version) and not version.startswith(b"HTTP/1."):
        return ClientError("Only HTTP/1.0 and HTTP/1.1 are supported.", status=505, code="version_not_supported")
    return ClientError("The request is not valid HTTP.", code="malformed_request")


def _no_method(received: bytes) -> ClientError:
    """The error for a section without a method; it must not depend on how many bytes have arrived."""
    if _LONG_METHOD.match(received):
        return ClientError("This method is not supported.", status=501, code="method_not_supported")
    return ClientError("The request is not valid HTTP.", code="malformed_request")
