"""How a client learns that its request failed inside the proxy: the error reply, or the reset of its connection."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

from inference_engine_proxy_server.errors import BackendTimeout, CapacityError, ProxyError

__all__ = ["failure_of", "reset_on_close"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, zero seconds

logger = logging.getLogger(__name__)


def failure_of(error: BaseException | None, request_id: str, *, is_late: bool) -> ProxyError:
    """The error for the client of a request.

    Args:
        error: what ended the handling of the request; ``None`` if it just ended, without a complete reply.
        request_id: for the log.
        is_late: the time for the whole request has passed.
    """
    if error is None:
        return ProxyError("The proxy ended its reply too early.")
    if isinstance(error, ProxyError):
        return error
    if not isinstance(error, asyncio.CancelledError):
        logger.error("request %s: unexpected error", request_id, exc_info=error)
        return ProxyError("Something went wrong inside the proxy.")
    if is_late:
        return BackendTimeout("The reply was not complete in time.", code="request_timeout")
    return CapacityError("The proxy is shutting down.", code="shutting_down", retry_after_seconds=1)


def reset_on_close(transport: asyncio.Transport) -> None:
    """Make the end of the connection visible as a failure (RST), where its end is the end of the reply."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
