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
