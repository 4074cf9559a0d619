"""Names of backend-local resources in requests and replies."""

from __future__ import annotations

import json

import pytest

from inference_engine_proxy_server.requests.content import read_content
from inference_engine_proxy_server.requests.resource_names import (
    is_stream,
    name_in_content,
    name_in_target,
    name_of_response,
    name_of_stream,
)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"/v1/responses/resp_1", b"responses resp_1"),
        (b"/responses/resp_1?stream=true", b"responses resp_1"),
        (b"/v1/responses/resp_1/cancel", b"responses resp_1"),
        (b"/v1/chat/completions/chatcmpl-4/messages", b"chat/completions chatcmpl-4"),
        (b"/v1/stream/a%20b%2Fc?from=7", b"stream a b/c"),
        (b"/v1/stream?from=7&conv_id=a+b%2Fc", b"stream a b/c"),
        (b"/v1/stream?conv_id=%FF", b"stream \xff"),
        (b"/v1/stream?conv_id=", None),
        (b"/v1/stream?from=7", None),
        (b"/v1/stream", None),
        (b"/v1/responses/" + b"x" * 256, b"responses " + b"x" * 256),
        (b"/v1/responses/" + b"x" * 257, None),
        (b"/v1/stream?conv_id=" + b"x" * 257, None),
    ],
)
def test_a_path_or_query_names_a_resource(target: bytes, name: bytes | None) -> None:
    assert name_in_target(target) == name


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"input": "hi", "previous_response_id": "resp_1"}', b"responses resp_1"),
        (b'{"previous_response_id": null}', None),
        (b'{"previous_response_id": ""}', None),
        (b'{"previous_response_id": 7}', None),
        (b'{"input": {"previous_response_id": "resp_1"}}', None),
        (json.dumps({"previous_response_id": "x" * 257}).encode(), None),
        (b'{"previous_response_id": "resp_1"', None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_a_body_names_the_response_that_it_continues(body: bytes, name: bytes | None) -> None:
    assert name_in_content(read_content(b"/v1/responses", body)) == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (b"accept: */*\r\nX-Conversation-Id:  a b\t\r\n", b"stream a b"),
        (b"x-conversation-id: " + "ü".encode() + b"\r\n", b"stream " + "ü".encode()),
        (b"x-conversation-id:\r\n", None),
        (b"not-x-conversation-id: a\r\n", None),
        (b"x-conversation-id: " + b"x" * 257 + b"\r\n", None),
        (b"", None),
    ],
)
def test_a_header_names_a_stream(fields: bytes, name: bytes | None) -> None:
    assert name_of_stream(fields) == name
    assert name is None or is_stream(name)


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b'{"id":"resp_1","object":"response"', b"responses resp_1"),
        (b'{"completed_at":7,"id": "resp_1",', b"responses resp_1"),
        (b'5d\r\nevent: response.created\ndata: {"response":{"id":"resp_1"', b"responses resp_1"),
        (b'{"id":"chatcmpl-1"', None),
        (b'{"error":{"message":"no"}}', None),
        (b" " * 4096 + b'"id":"resp_1"', None),
    ],
)
def test_the_beginning_of_a_reply_names_its_response(beginning: bytes, name: bytes | None) -> None:
    assert name_of_response(beginning) == name
