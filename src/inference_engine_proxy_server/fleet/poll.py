"""The requests of a poll, and why a backend does not answer them or cannot be used: one sentence for operators."""

from __future__ import annotations

import asyncio
import logging

from inference_engine_proxy_server.backends.base import Get, Reply, UnreadableState
from inference_engine_proxy_server.errors import (
    BackendError,
    BackendTimeout,
    BackendUnreachable,
    CapacityError,
    InvalidReply,
)
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.wire.fetch import Inquiry

__all__ = ["NoConnectionInTime", "NoReply", "NotHttp", "Polls", "Unusable"]

logger = logging.getLogger(__name__)

_OWN_DELAY_SECONDS = 0.25  # a deadline is missed by more than this only if the event loop is late
_LOOP_DETECTED = 508
_PATHS_WITH_KEY = frozenset({"/v1/models", "/v1/model", "/props"})  # each is protected by the API key of some engine
_NO_HTTP = "it does not speak HTTP: check its port, and whether its URL should begin with https://"
_WANTS_TLS = "it speaks TLS: its URL should begin with https://"
_ENDS_SILENTLY = "it closed the connection without an answer: check its port, and whether its URL needs https://"
_REJECTS_KEY = "it rejects the proxy's key: check BACKEND_API_KEY, or the backend's api_key in the fleet file"
_NEEDS_KEY = (
    "it requires a key, and the proxy has none: set BACKEND_API_KEY, or the backend's api_key in the fleet file"
)
_IS_THIS_PROXY = "it is this proxy itself: remove its URL from the backends"


class NoReply(ConnectionError):
    """No reply to a poll; the text is a reason for operators."""


class NoConnectionInTime(TimeoutError):
    """No connection in time; the text is a reason for operators."""


class Unusable(Exception):
    """Every request to the backend would fail; the text is a reason for operators."""


class NotHttp(UnreadableState):
    """The reply is not HTTP; the text is a reason for operators."""


class Polls:
    """Sends the requests of polls.

    Args:
        via: the header line ``Via``, by which the proxy recognizes its own polls.
        timeout_seconds: longest time for one request.
        forwards_keys: whether backends without a key of the proxy get the clients' own keys.
    """

    def __init__(self, via: bytes, timeout_seconds: float, *, forwards_keys: bool) -> None:
        self._via = via
        self._timeout_seconds = timeout_seconds
        self._forwards_keys = forwards_keys
        self._warned: set[str] = set()  # URLs of backends that need a key

    def get_from(self, backend: Backend, inquiry: Inquiry) -> Get:
        """A function that asks ``backend``.

        Besides the errors of :class:`Get`, it raises :class:`Unusable`, and ``CapacityError`` for a shortage of the
        proxy itself.
        """

        async def get(path: str, json_body: bytes | None = None) -> Reply:
            loop = asyncio.get_running_loop()
            late_at = loop.time() + self._timeout_seconds + _OWN_DELAY_SECONDS
            try:
                fields = (backend.credentials or b"") + self._via
                reply = await inquiry.fetch(
                    path, json_body=json_body, credentials=fields, timeout_seconds=self._timeout_seconds
                )
            except (TimeoutError, BackendError) as error:
                reason = _reason_of(error)
                if isinstance(reason, TimeoutError) and loop.time() > late_at:
                    raise CapacityError("The proxy itself was delayed.") from error
                raise reason from error
            self._check_usable(backend, path, reply.status, reply.body)
            return Reply(reply.status, reply.body, reply.fields)

        return get

    async def reach(self, inquiry: Inquiry) -> None:
        """Check that the backend accepts a connection.

        Raises:
            OSError, TimeoutError: it does not; the text is a reason for operators.
            CapacityError: the proxy itself lacks something.
        """
        try:
            await inquiry.reach(self._timeout_seconds)
        except BackendError as error:
            raise _reason_of(error) from error

    def _check_usable(self, backend: Backend, path: str, status: int, body: bytes) -> None:
        """Raise :class:`Unusable` if the reply to a poll shows that every request would fail."""
        if status == 400 and not backend.connections.origin.is_tls and b"HTTPS" in body[:1000]:
            raise Unusable(_WANTS_TLS)  # nginx and Go say so
        if status == _LOOP_DETECTED:
            raise Unusable(_IS_THIS_PROXY)
        if status == 401 and path in _PATHS_WITH_KEY:
            if backend.credentials is not None:
                raise Unusable(_REJECTS_KEY)
            if not self._forwards_keys:
                raise Unusable(_NEEDS_KEY)
            self._warn_of_missing_key(backend)  # requests of clients that send the engine's key work

    def _warn_of_missing_key(self, backend: Backend) -> None:
        if backend.url not in self._warned:
            self._warned.add(backend.url)
            logger.warning(
                "backend %s requires a key, and the proxy has none: requests fail with 401 unless clients send the "
                "engine's key, and its models are unknown; set BACKEND_API_KEY, or the backend's api_key in the fleet "
                "file",
                backend.url,
            )


def _reason_of(error: Exception) -> Exception:
    """The exception for a failed request of a poll, with a reason for operators if there is one."""
    if isinstance(error, BackendUnreachable):
        return (NoConnectionInTime if error.timed_out else NoReply)(error.reason)
    if isinstance(error, InvalidReply):
        return NotHttp(_NO_HTTP)
    if isinstance(error, (TimeoutError, BackendTimeout)):
        return TimeoutError(str(error))
    return NoReply(_ENDS_SILENTLY)
