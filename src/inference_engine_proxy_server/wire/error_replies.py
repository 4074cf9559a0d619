"""What clients get of an error: status, header lines and body, in the API dialect of the path."""

from __future__ import annotations

import json
import math

from inference_engine_proxy_server.errors import BackendTimeout, BudgetError, ProxyError, RequestCancelled

__all__ = ["error_body", "error_fields", "stream_error_event", "stream_event_of"]

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_RESPONSES = ("/responses", "/v1/responses")


def _speaks_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def _error_object(error: ProxyError, path: str, request_id: str) -> dict[str, object]:
    server_fault = error.status >= 500
    if _speaks_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if server_fault else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
    kind = _OPENAI_TYPES.get(error.status, "server_error" if server_fault else "invalid_request_error")
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "code": error.code,
            "param": "model" if error.code == "model_not_found" else None,
            "request_id": request_id,
        }
    }


def error_body(error: ProxyError, path: str, request_id: str) -> bytes:
    """The JSON body for ``error`` in the API dialect of ``path``: Anthropic's below /v1/messages, else OpenAI's."""
    return json.dumps(_error_object(error, path, request_id)).encode()


def error_fields(error: ProxyError, path: str, request_id: str) -> bytes:
    """The header lines for :func:`error_body`.

    ``x-should-retry: false`` stops the OpenAI and Anthropic SDKs from retrying: after a timeout, retries would make an
    engine do the same work a second and a third time; a spent budget is not renewed within the time of their retries; a
    cancelled request should not come back.
    Anthropic's SDKs read the request id from ``request-id``. Web pages of any origin may read these errors, which do
    not depend on cookies.
    """
    fields = [b"content-type: application/json\r\n"]
    if error.retry_after_seconds:
        # OpenAI's SDKs prefer the exact value.
        exact = math.ceil(error.retry_after_seconds * 1000)
        fields.append(b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (math.ceil(error.retry_after_seconds), exact))
    if error.status == 405:
        fields.append(b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n")
    if error.code == "websocket_version":
        fields.append(b"upgrade: websocket\r\nsec-websocket-version: 13\r\n")  # RFC 6455, 4.4
    elif error.status == 426:
        fields.append(b"upgrade: HTTP/1.1\r\n")  # RFC 9110, 15.5.22: the protocols that are supported
    if isinstance(error, (BackendTimeout, BudgetError, RequestCancelled)):
        fields.append(b"x-should-retry: false\r\n")
    if _speaks_anthropic(path):
        fields.append(b"request-id: %b\r\n" % request_id.encode())
    fields.append(b"access-control-allow-origin: *\r\naccess-control-expose-headers: x-request-id, retry-after\r\n")
    return b"".join(fields)


def stream_error_event(error: ProxyError, path: str, request_id: str) -> bytes:
    """One server-sent event that reports a broken stream to its client, see :func:`stream_event_of`."""
    return stream_event_of(error_body(error, path, request_id), error.status, path)


def stream_event_of(body: bytes, status: int, path: str) -> bytes:
    """An error's JSON body and status as one server-sent event, in the API dialect of ``path``.

    OpenAI's SDKs raise on a ``data:`` object with an ``error`` member, Anthropic's on ``event: error``, and clients of
    /v1/responses expect ``event: response.failed``.
    """
    if path in _RESPONSES:
        return _failed_response(body, status)
    prefix = b"event: error\n" if _speaks_anthropic(path) else b""
    return prefix + b"".join(b"data: %b\n" % line for line in body.splitlines() or [b"{}"]) + b"\n"


def _failed_response(body: bytes, status: int) -> bytes:
    """The event ``response.failed``, with a member ``error``, on which OpenAI's SDKs raise.

    Codex repeats the request unless the code says that the request is at fault. OpenAI's API reference lists the codes
    (``ResponseError``).
    """
    try:
        members = json.loads(body)
    except ValueError:
        members = None
    found = members.get("error") if isinstance(members, dict) else None
    error = found if isinstance(found, dict) else {"message": body.decode(errors="replace")}
    code = "rate_limit_exceeded" if status == 429 else "invalid_prompt" if status < 500 else "server_error"
    failure = {"code": code, "message": str(error.get("message"))}
    failed = {"type": "response.failed", "response": {"status": "failed", "error": failure}, "error": error}
    return b"event: response.failed\ndata: " + json.dumps(failed).encode() + b"\n\n"
