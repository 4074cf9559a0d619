"""The base class of watches, which follow a request through waiting, failures, and changes of backend or model."""

from __future__ import annotations

from inference_engine_proxy_server.errors import BackendError

__all__ = ["UNWATCHED", "RequestWatch"]


class RequestWatch:
    """Watches one request. A subclass overrides the methods that it needs; they must not raise.

    Only rare steps are reported. A request that gets a backend and a whole reply at once calls at most
    :meth:`connected`, and no event of a stream calls anything. What all requests have, such as the time of the first
    byte, is in the request itself.
    """

    __slots__ = ()

    def joined_queue(self) -> None:
        """All backends are full: the request waits."""

    def left_queue(self) -> None:
        """The request no longer waits: it has a lease, or has failed."""

    def connected(self, backend: str) -> None:
        """A new connection to the backend at this base URL is open. Connections that are reused are not reported."""

    def attempt_failed(self, backend: str, error: BackendError) -> None:
        """The backend at this base URL did not serve the request; another attempt may follow."""

    def resumed(self, backend: str, error: BackendError, tokens: int) -> None:
        """The stream broke on ``backend`` after this number of tokens, and continues on another backend."""

    def not_resumed(self, backend: str, rule: str) -> None:
        """The stream broke on ``backend``, and this rule excludes it from being continued."""

    def fell_back(self, model: str, fallback: str, reason: str) -> None:
        """``model`` cannot serve the request, and ``fallback`` gets it; names as in the fleet file."""

    def repeated(self, reason: str) -> None:
        """The reply could not be assembled from a stream, so the request is sent again as the client sent it."""


UNWATCHED = RequestWatch()
"""The watch of requests that nobody watches."""
