from __future__ import annotations

import pytest

from inference_engine_proxy_server.errors import (
    BackendBroke,
    BackendError,
    BackendTimeout,
    BackendUnreachable,
    CapacityError,
    ClientError,
    InvalidReply,
    ProxyError,
)


@pytest.mark.parametrize(
    ("error", "parent", "status", "code"),
    [
        (ProxyError("m"), Exception, 500, "internal_error"),
        (ClientError("m"), ProxyError, 400, "invalid_request"),
        (CapacityError("m"), ProxyError, 503, "no_backend_available"),
        (BackendError("m"), ProxyError, 502, "backend_failed"),
        (BackendUnreachable("m"), BackendError, 502, "backend_unreachable"),
        (BackendBroke("m"), BackendError, 502, "backend_disconnected"),
        (BackendTimeout("m"), BackendError, 504, "backend_timeout"),
        (InvalidReply("m"), BackendError, 502, "invalid_backend_reply"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ProxyError) else "",
)
def test_each_error_has_its_parent_status_and_code(
    error: ProxyError, parent: type[Exception], status: int, code: str
) -> None:
    assert isinstance(error, parent)
    assert (error.status, error.code, error.message, error.retry_after_seconds) == (status, code, "m", None)


def test_an_instance_can_override_status_and_code() -> None:
    error = ClientError("m", status=413, code="body_too_large", retry_after_seconds=2)
    assert (error.status, error.code, error.retry_after_seconds) == (413, "body_too_large", 2)
    assert (ClientError.status, ClientError.code) == (400, "invalid_request")
    assert BackendBroke("m", crossed_request=True).crossed_request
    assert not BackendBroke("m").crossed_request
