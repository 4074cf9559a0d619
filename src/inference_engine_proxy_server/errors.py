"""Exceptions for failed requests, grouped by the party at fault.

::

    ProxyError
    ├── ClientError              the request is at fault
    ├── CapacityError            no backend is available for the request now; waiting helps
    │   └── BudgetError          the key has used up its tokens of the day or month
    ├── RequestCancelled         an operator cancelled the request
    └── BackendError             a backend failed while it had the request
        ├── BackendUnreachable   nothing was sent, so another backend can safely be tried
        ├── BackendBroke         sent, but the connection ended early
        ├── BackendTimeout       sent, but no reply in time
        ├── BackendDeclined      sent, but the backend replied that it cannot serve requests now
        ├── BackendLacks         sent, but the backend replied that it lacks the named resource
        ├── RequestMoved         sent, but withdrawn because the backend seems to be stuck or gone
        └── InvalidReply         the reply is not valid HTTP/1.1
            └── StreamNotContinued   the reply does not continue the stream that broke on another backend

An engine's own error reply is a reply, not an exception: it is forwarded unchanged.
"""

from __future__ import annotations

import json
import math

__all__ = [
    "BUSY_STATUSES",
    "BackendBroke",
    "BackendDeclined",
    "BackendError",
    "BackendLacks",
    "BackendTimeout",
    "BackendUnreachable",
    "BudgetError",
    "CapacityError",
    "ClientError",
    "EngineLacks",
    "InvalidReply",
    "ProxyError",
    "RequestCancelled",
    "RequestMoved",
    "StreamNotContinued",
    "error_body",
    "error_fields",
    "stream_error_event",
    "stream_event_of",
]


class ProxyError(Exception):
    """A failure for which the proxy itself sends the error reply.

    Attributes:
        status: HTTP status of the reply.
        code: machine-readable reason, stable across versions.
        message: constant text for the client; never contains a host name, a port or text from an engine.
        retry_after_seconds: when a retry makes sense; ``None`` when waiting does not help.
    """

    status = 500
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status or self.status
        self.code = code or self.code
        self.retry_after_seconds = retry_after_seconds


class ClientError(ProxyError):
    """The request cannot be served as it was sent."""

    status = 400
    code = "invalid_request"


class PromptTooLong(ClientError):
    """An engine rejected the prompt as longer than its context, and another model may have room for it.

    Attributes:
        reply: the engine's reply: status, reason phrase, header lines and body.
    """

    code = "context_length_exceeded"

    def __init__(self, reply: tuple[int, bytes, bytes, bytes]) -> None:
        super().__init__("The prompt is longer than the context of the model.")
        self.reply = reply


class CapacityError(ProxyError):
    """No backend can take the request now."""

    status = 503
    code = "no_backend_available"


class BudgetError(CapacityError):
    """The request's key has used up its tokens of the day or month."""

    status = 429
    code = "insufficient_quota"  # OpenAI's


class RequestCancelled(ProxyError):
    """An operator has cancelled the request."""

    status = 503
    code = "request_cancelled"


class BackendError(ProxyError):
    """A backend failed while it had the request."""

    status = 502
    code = "backend_failed"


class BackendUnreachable(BackendError):
    """No connection could be made, so no byte of the request was sent.

    Attributes:
        timed_out: the connection attempt got no response at all before its deadline.
        reason: one sentence for operators; clients do not see it.
    """

    code = "backend_unreachable"

    def __init__(self, message: str, *, timed_out: bool = False, reason: str = "it cannot be reached") -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.reason = reason


class BackendBroke(BackendError):
    """The connection ended before the reply was complete.

    Attributes:
        crossed_request: the connection had served earlier requests and ended at the moment of sending: the backend
            may have closed it as idle before it received this one. Such an error says nothing about its health.
    """

    code = "backend_disconnected"

    def __init__(self, message: str, *, crossed_request: bool = False) -> None:
        super().__init__(message)
        self.crossed_request = crossed_request


class BackendTimeout(BackendError):
    """The backend did not reply in time, or its reply stalled for too long."""

    status = 504
    code = "backend_timeout"


BUSY_STATUSES = frozenset({429, 502, 503})
"""Statuses of a backend that mean "not here, not now": another backend may do better."""


class BackendDeclined(BackendError):
    """The backend replied with a status that means "not now", and the reply was not forwarded."""

    code = "backend_declined"

    def __init__(self, backend_status: int) -> None:
        super().__init__("The backend declined the request.")
        self.backend_status = backend_status


class BackendLacks(BackendError):
    """The backend replied that it lacks the resource that the request names, and the reply was not forwarded."""

    code = "backend_lacks"


class EngineLacks(BackendLacks):
    """The backend replied that its engine lacks the path, or the model, of a request that names no listed model."""

    code = "engine_lacks"


class RequestMoved(BackendError):
    """The request was withdrawn before any byte of a reply, to be sent to another backend."""

    code = "request_moved"


class InvalidReply(BackendError):
    """The backend's reply is not valid HTTP/1.1."""

    code = "invalid_backend_reply"


class StreamNotContinued(InvalidReply):
    """The backend's reply does not continue the stream that broke on another backend."""

    code = "stream_not_continued"


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
