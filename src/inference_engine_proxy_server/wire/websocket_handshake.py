"""The opening handshake of a WebSocket (RFC 6455, 4).

The request and the reply (:mod:`.reply_head`) are validated, because the bytes that follow are relayed unread. If the
client and the backend could disagree about the switch, those bytes could be HTTP requests that nobody checked.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha1

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["expected_accept", "open_handshake", "reply_fields"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")  # 16 bytes in base64
_OF_HANDSHAKE = re.compile(rb"(?:^|(?<=\n))sec-websocket-(key|version):[ \t]*+([^\r\n]*)\r\n", re.IGNORECASE)
_PROTOCOLS = re.compile(rb"(?:^|(?<=\n))sec-websocket-protocol:([^\r\n]*)\r\n", re.IGNORECASE)
_KEY_PROTOCOL = b"openai-insecure-api-key."  # what OpenAI's clients in browsers send, which cannot set header fields


def open_handshake(head: RequestHead) -> None:
    """Check the handshake in ``head``, and complete the lines for the backend.

    An API key among the subprotocols becomes an ``Authorization`` field, so that no engine takes it for a protocol.

    Raises:
        ClientError: 400, it is no valid handshake; 426, its version is another one than 13.
    """
    if head.method != "GET" or not head.minor_version or head.chunked or head.content_length:
        raise _invalid("A WebSocket begins with a GET request of HTTP/1.1 without a body.")
    given = [(name.lower(), value.strip()) for name, value in _OF_HANDSHAKE.findall(head.passed_on)]
    keys, versions = ([value for name, value in given if name == wanted] for wanted in (b"key", b"version"))
    if len(versions) != 1:
        raise _invalid("A WebSocket request needs exactly one Sec-WebSocket-Version field.")
    if versions[0] != b"13":
        raise ClientError("The only WebSocket version is 13.", status=426, code="websocket_version")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise _invalid("A WebSocket request needs exactly one valid Sec-WebSocket-Key field.")
    head.keep_alive = False  # whatever the reply: bytes that the client has sent ahead are no request
    head.has_body = False
    _take_key_from_protocols(head)
    head.passed_on += b"connection: Upgrade\r\nupgrade: websocket\r\n"


def expected_accept(head: RequestHead) -> bytes:
    """The value of ``Sec-WebSocket-Accept`` that answers the handshake in ``head``, which is valid."""
    key = next(value.strip() for name, value in _OF_HANDSHAKE.findall(head.passed_on) if name.lower() == b"key")
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def reply_fields(head: RequestHead, fields: bytes) -> bytes:
    """The header lines of the reply that opens the WebSocket of ``head``, for the client.

    Chromium gives a WebSocket up if it offered subprotocols and none was selected, and vLLM selects none. A client that
    had to offer one because of its key therefore gets the first of the others.

    Args:
        head: with a valid handshake.
        fields: the lines of the backend's reply.
    """
    if head.usual_protocol is not None and not _PROTOCOLS.search(fields):
        return fields + b"sec-websocket-protocol: %b\r\n" % head.usual_protocol
    return fields


def _take_key_from_protocols(head: RequestHead) -> None:
    offered = [name.strip() for line in _PROTOCOLS.findall(head.passed_on) for name in line.split(b",")]
    keys = [name for name in offered if name.startswith(_KEY_PROTOCOL)]
    others = [name for name in offered if name and name not in keys]
    if not keys:
        return
    head.usual_protocol = others[0] if others else None
    if head.authorization is None:
        head.authorization = b"Bearer " + keys[0].removeprefix(_KEY_PROTOCOL)
        head.credentials += b"authorization: %b\r\n" % head.authorization
    rest = _PROTOCOLS.sub(b"", head.passed_on)
    head.passed_on = rest + (b"sec-websocket-protocol: %b\r\n" % b", ".join(others) if others else b"")


def _invalid(message: str) -> ClientError:
    return ClientError(message, code="invalid_websocket_request")
