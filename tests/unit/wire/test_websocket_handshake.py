"""The opening handshake of a WebSocket. Malformed ones are in ``tests/corpus/requests.yaml``."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.error_replies import error_fields
from inference_engine_proxy_server.wire.request_head import RequestHead, parse_request_head
from inference_engine_proxy_server.wire.websocket_handshake import expected_accept, open_handshake, reply_fields
from support.fakes.front import LIMITS

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455, 1.3
SECRET = b"sk-0123456789abcdef"


def opened(*lines: bytes, key: bytes = KEY, version: bytes = b"13") -> RequestHead:
    """The head of a handshake with further lines."""
    fields = (
        b"Host: a", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: " + key,
        b"Sec-WebSocket-Version: " + version, *lines, b"",
    )  # fmt: skip
    head = parse_request_head(b"\r\n".join((b"GET /v1/realtime HTTP/1.1", *fields)), LIMITS.head)
    open_handshake(head)
    return head


def forwarded(head: RequestHead) -> list[bytes]:
    section = head.for_backend(b"engine:1", b"", "id", 0, credentials=head.credentials, close=False)
    return section.split(b"\r\n")[1:-2]


def test_the_handshake_of_the_standard_is_answered_as_there() -> None:
    assert expected_accept(opened()) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_the_backend_gets_the_handshake_unchanged_and_the_connection_carries_no_other_request() -> None:
    lines = [b"Sec-WebSocket-Extensions: permessage-deflate", b"Sec-WebSocket-Protocol: a, b", b"Content-Length: 0"]
    head = opened(*lines)
    assert forwarded(head) == [
        b"host: engine:1", b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Version: 13", *lines[:2],
        b"connection: Upgrade", b"upgrade: websocket", b"x-request-id: id",
    ]  # fmt: skip
    assert not head.keep_alive


@pytest.mark.parametrize("key", [b"", b"dGhlIHNhbXBsZSBub25jZQ", b"dGhlIHNhbXBsZSBub25jZR==", b"x" * 24, KEY * 2])
def test_a_key_of_other_than_16_bytes_is_refused(key: bytes) -> None:
    with pytest.raises(ClientError, match="Sec-WebSocket-Key") as raised:
        opened(key=key)
    assert (raised.value.status, raised.value.code) == (400, "invalid_websocket_request")


@pytest.mark.parametrize("version", [b"8", b"013", b"13, 8", b""])
def test_the_refusal_of_another_version_names_the_right_one(version: bytes) -> None:
    with pytest.raises(ClientError) as raised:
        opened(version=version)
    assert raised.value.status == 426
    assert b"upgrade: websocket\r\nsec-websocket-version: 13\r\n" in error_fields(raised.value, "/", "id")


@pytest.mark.parametrize(
    ("lines", "authorization", "protocols"),
    [
        ([b"openai-insecure-api-key." + SECRET], b"Bearer " + SECRET, []),
        ([b"realtime,openai-insecure-api-key." + SECRET + b" , b"], b"Bearer " + SECRET, [b"realtime, b"]),
        ([b"realtime", b"openai-insecure-api-key." + SECRET], b"Bearer " + SECRET, [b"realtime"]),
        ([b"openai-insecure-api-key.x, openai-insecure-api-key.y, a"], b"Bearer x", [b"a"]),
        ([b"a, b", b"c"], None, [b"a, b", b"c"]),
    ],
)
def test_a_key_among_the_subprotocols_becomes_a_bearer(
    lines: list[bytes], authorization: bytes | None, protocols: list[bytes]
) -> None:
    head = opened(*(b"Sec-WebSocket-Protocol: " + line for line in lines))
    assert head.authorization == authorization
    sent = dict.fromkeys(line.partition(b": ")[2] for line in forwarded(head) if b"-protocol" in line.lower())
    assert list(sent) == protocols
    assert [line for line in forwarded(head) if line.startswith(b"authorization")] == (
        [b"authorization: " + authorization] if authorization else []
    )


def test_a_key_in_its_own_field_is_kept_and_the_other_one_removed() -> None:
    head = opened(b"Authorization: Bearer mine", b"Sec-WebSocket-Protocol: a, openai-insecure-api-key.other")
    assert head.authorization == b"Bearer mine"
    assert b"other" not in b"".join(forwarded(head))


def test_only_a_client_that_sent_its_key_as_a_subprotocol_gets_one_that_the_backend_did_not_select() -> None:
    with_key = opened(b"Sec-WebSocket-Protocol: openai-insecure-api-key.k, realtime, b")
    assert reply_fields(with_key, b"server: x\r\n") == b"server: x\r\nsec-websocket-protocol: realtime\r\n"
    selected = b"Sec-WebSocket-Protocol: b\r\n"
    assert reply_fields(with_key, selected) == selected
    assert reply_fields(opened(b"Sec-WebSocket-Protocol: realtime"), b"") == b""
    assert reply_fields(opened(b"Sec-WebSocket-Protocol: openai-insecure-api-key.k"), b"") == b""
