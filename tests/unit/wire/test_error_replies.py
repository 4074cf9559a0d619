from __future__ import annotations

import json

import pytest

from inference_engine_proxy_server.errors import BackendBroke, BackendTimeout, CapacityError, ClientError, ProxyError
from inference_engine_proxy_server.wire.error_replies import (
    error_body,
    error_fields,
    stream_error_event,
    stream_event_of,
)


@pytest.mark.parametrize(
    ("status", "openai", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (403, "permission_error", "permission_error"),
        (404, "invalid_request_error", "not_found_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (502, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
        (504, "server_error", "timeout_error"),
        (529, "server_error", "overloaded_error"),
    ],
)
def test_each_dialect_has_its_own_error_type_for_a_status(status: int, openai: str, anthropic: str) -> None:
    error = ProxyError("Why.", status=status, code="c")
    assert json.loads(error_body(error, "/v1/chat/completions", "id-1")) == {
        "error": {"message": "Why.", "type": openai, "code": "c", "param": None, "request_id": "id-1"}
    }
    expected = {"type": "error", "error": {"type": anthropic, "message": "Why."}, "request_id": "id-1"}
    assert json.loads(error_body(error, "/v1/messages", "id-1")) == expected
    assert json.loads(error_body(error, "/v1/messages/count_tokens", "id-1")) == expected


@pytest.mark.parametrize(
    ("error", "path", "lines"),
    [
        (
            CapacityError("m", retry_after_seconds=3),
            "/v1/chat/completions",
            [b"retry-after: 3", b"retry-after-ms: 3000"],
        ),
        (
            CapacityError("m", retry_after_seconds=1.25),
            "/v1/chat/completions",
            [b"retry-after: 2", b"retry-after-ms: 1250"],
        ),
        (BackendTimeout("m"), "/v1/chat/completions", [b"x-should-retry: false"]),
        (ClientError("m"), "/v1/messages", [b"request-id: id-1"]),
    ],
    ids=["whole-seconds", "fraction-of-a-second", "timeout-must-not-be-retried", "anthropic"],
)
def test_header_guides_sdk_retries_and_lets_web_pages_of_any_origin_read_the_error(
    error: ProxyError, path: str, lines: list[bytes]
) -> None:
    assert error_fields(error, path, "id-1").split(b"\r\n") == [
        b"content-type: application/json",
        *lines,
        b"access-control-allow-origin: *",
        b"access-control-expose-headers: x-request-id, retry-after",
        b"",
    ]


def test_a_path_that_merely_starts_like_an_anthropic_path_gets_the_openai_dialect() -> None:
    assert "param" in json.loads(error_body(ClientError("m"), "/v1/messagesx", "id-1"))["error"]


def test_an_unknown_model_error_names_the_model_parameter() -> None:
    error = ClientError("m", status=404, code="model_not_found")
    assert json.loads(error_body(error, "/v1/completions", "id-1"))["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("path", "event_name"),
    [
        ("/v1/chat/completions", None),
        ("/v1/completions", None),
        ("/v1/messages", b"error"),
        ("/v1/responses", b"response.failed"),
    ],
)
def test_a_broken_stream_is_reported_in_one_event_of_the_paths_dialect(path: str, event_name: bytes | None) -> None:
    event = stream_error_event(BackendBroke("Gone."), path, "id-1")
    assert event.endswith(b"\n\n")
    *names, data = event[:-2].split(b"\n")
    assert names == ([] if event_name is None else [b"event: " + event_name])
    assert data.startswith(b"data: ")
    assert b"Gone." in data
    assert b"[DONE]" not in event


def test_a_broken_responses_stream_has_status_failed() -> None:
    event = stream_error_event(BackendBroke("Gone."), "/v1/responses", "id-1")
    failed = json.loads(event.partition(b"data: ")[2])
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["message"] == "Gone."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "m", "code": 400}}', "m"),
        (b'{"error": "its own"}', '{"error": "its own"}'),
        (b"Bad Gateway \xff", "Bad Gateway \ufffd"),
        (b"", ""),
    ],
)
@pytest.mark.parametrize("path", ["/v1/responses", "/responses"])
@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "invalid_prompt"), (429, "rate_limit_exceeded"), (500, "server_error"), (504, "server_error")],
)
def test_an_error_of_an_engine_is_a_failed_response(
    path: str, body: bytes, message: str, status: int, code: str
) -> None:
    name, data = stream_event_of(body, status, path).removesuffix(b"\n\n").split(b"\n")
    failed = json.loads(data.removeprefix(b"data: "))
    assert name == b"event: response.failed"
    assert failed["response"] == {"status": "failed", "error": {"code": code, "message": message}}
    assert failed["error"]["message"] == message
