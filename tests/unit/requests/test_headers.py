"""Request headers that steer the proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.requests.headers import (
    conversation_id,
    multipart_boundary,
    names_conversation,
    session_id,
    stated_priority,
    wants_explanation,
    wants_queue_updates,
)


@pytest.mark.parametrize(
    ("lines", "priority"),
    [
        (b"X-Priority: 5\r\n", 5),
        (b"accept: */*\r\nx-priority:\t-100 \r\nhost: a\r\n", -100),
        (b"x-priority: 1000\r\n", None),
        (b"x-priority: high\r\n", None),
        (b"x-priority:\r\n", None),
        (b"my-x-priority: 5\r\nx-other: x-priority: 6\r\n", None),
        (b"", None),
    ],
)
def test_a_priority_is_an_integer_of_up_to_three_digits(lines: bytes, priority: int | None) -> None:
    assert stated_priority(lines) == priority


@pytest.mark.parametrize(
    ("value", "are_wanted"), [("true", True), ("1", True), ("YES", True), ("on", True), ("false", False), ("", False)]
)
def test_a_true_value_requests_queue_updates(value: str, are_wanted: bool) -> None:
    assert wants_queue_updates(f"accept: */*\r\nX-Queue-Updates: {value}\r\n".encode()) is are_wanted


@pytest.mark.parametrize(("value", "is_wanted"), [("1", True), ("11", False), ("true", False), ("", False)])
def test_the_value_1_requests_an_explanation(value: str, is_wanted: bool) -> None:
    assert wants_explanation(f"X-Proxy-Explain: {value}\r\n".encode()) is is_wanted


@pytest.mark.parametrize(
    ("lines", "is_named", "value"),
    [
        (b"X-Conversation-Id:  a b\t\r\n", True, b"a b"),
        (b"x-conversation-id:\r\n", True, None),
        (b"not-x-conversation-id: a\r\n", False, None),
        (b"", False, None),
    ],
)
def test_an_empty_conversation_id_is_present_but_names_nothing(
    lines: bytes, is_named: bool, value: bytes | None
) -> None:
    assert names_conversation(lines) is is_named
    assert conversation_id(lines) == value


@pytest.mark.parametrize(
    ("lines", "session"),
    [
        (b"session-id: d\r\nX-Session-Id: a\r\n", "a"),
        (b"session-id: d\r\nx-openwebui-chat-id: c\r\nX-Claude-Code-Session-Id: b\r\n", "b"),
        (b"x-session-id: \xe9\r\n", "\xe9"),
        (b"x-session-id: " + b"x" * 257 + b"\r\n", None),
        (b"x-conversation-id: e\r\n", None),
    ],
)
def test_the_session_header_with_the_highest_precedence_counts(lines: bytes, session: str | None) -> None:
    assert session_id(lines) == session


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=X", b"X"),
        (b'multipart/form-data; boundary="a b"', None),
        (b'multipart/form-data; boundary="X"; charset=utf-8', b"X"),
        (b"multipart/form-data; boundary=X; boundary=Y", None),
        (b"multipart/form-data; boundary*=X", None),
        (b"multipart/form-data", None),
    ],
)
def test_a_boundary_counts_only_once_and_in_plain_notation(content_type: bytes, boundary: bytes | None) -> None:
    assert multipart_boundary(b"content-type: " + content_type + b"\r\n") == boundary


@given(st.binary(max_size=200))
def test_no_header_section_raises(lines: bytes) -> None:
    for read in (
        conversation_id, multipart_boundary, names_conversation, session_id, stated_priority, wants_explanation,
        wants_queue_updates,
    ):  # fmt: skip
        read(lines)
