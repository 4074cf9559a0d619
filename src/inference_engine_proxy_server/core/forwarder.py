"""One request on its way: choose a backend, send, and send elsewhere if that failed and may be tried again."""

from __future__ import annotations

from inference_engine_proxy_server.core.backend_pool import Backend, BackendPool, Lease
from inference_engine_proxy_server.core.path_policy import PathPolicy
from inference_engine_proxy_server.core.request_traits import requested_model
from inference_engine_proxy_server.core.retry import NextAttempt, next_attempt
from inference_engine_proxy_server.errors import (
    BackendBroke,
    BackendError,
    BackendUnreachable,
    ClientError,
    ProxyError,
)
from inference_engine_proxy_server.metrics import RequestMetrics
from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = ["Forwarder"]


class Forwarder:
    """Answers exchanges by passing them on to a backend.

    Args:
        pool: chooses.
        paths: what is not passed on.
        metrics: told of repeated requests.
        names_backend: whether replies say, in ``x-backend``, who gave them.
        keeps_credentials: whether clients' keys go on to backends that have none of ours.
    """

    def __init__(
        self,
        pool: BackendPool,
        paths: PathPolicy,
        metrics: RequestMetrics,
        *,
        names_backend: bool,
        keeps_credentials: bool = True,
    ) -> None:
        self._keeps_credentials = keeps_credentials
        self._pool = pool
        self._paths = paths
        self._metrics = metrics
        self._names_backend = names_backend

    async def forward(self, exchange: Exchange) -> None:
        """Give ``exchange`` the reply of the best backend.

        Raises:
            ProxyError: there is none; or, with its reply begun, it will not be complete.
        """
        head = exchange.head
        if self._paths.blocks(head.method, head.path):
            message = "This path controls the engine itself; it is blocked here by BLOCKED_PATHS."
            raise ClientError(message, status=403, code="path_blocked")
        if exchange.model is None:
            exchange.model = requested_model(head.target, exchange.body)
        failed: list[Backend] = []
        failure: BackendError | None = None
        replays = 0
        fresh = False
        while True:
            lease = self._lease(exchange.model, failed, failure)
            try:
                return await self._send(exchange, lease.backend, fresh=fresh)
            except BackendError as error:
                failure = error
                self._report(lease.backend, error)
                following = next_attempt(
                    error, method=head.method, path=head.path, reply_begun=exchange.begun, replays=replays
                )
                if following is NextAttempt.NONE:
                    raise
                self._metrics.count_retry(error.code)
                replays += not isinstance(error, BackendUnreachable)
                if following is NextAttempt.SAME_ON_FRESH_CONNECTION:
                    fresh = True
                else:
                    failed.append(lease.backend)
            finally:
                lease.close()

    def _lease(self, model: str | None, failed: list[Backend], failure: BackendError | None) -> Lease:
        try:
            return self._pool.lease(model, failed)
        except ProxyError:
            if isinstance(failure, BackendBroke):  # it was sent once, so "nobody is free" would not be the truth
                raise failure from None
            raise

    def _report(self, backend: Backend, error: BackendError) -> None:
        """Let everyone know at once what this failure says about the backend."""
        if isinstance(error, BackendUnreachable):
            self._pool.report_failure(backend, "it cannot be reached")
        elif isinstance(error, BackendBroke) and not error.on_reused_connection:
            self._pool.report_failure(backend, "it broke a connection")

    async def _send(self, exchange: Exchange, backend: Backend, *, fresh: bool) -> None:
        connections = backend.connections
        connection = (None if fresh else connections.take_idle()) or await connections.connect()
        exchange.backend = backend.url
        if self._names_backend:
            exchange.extra_fields = exchange.limit_fields + backend.reply_field
        try:
            head = exchange.head
            origin = connections.origin
            credentials = backend.credentials
            if credentials is None:
                credentials = head.credentials if self._keeps_credentials else b""
            section = head.for_backend(
                origin.authority,
                origin.prefix,
                exchange.request_id,
                len(exchange.body),
                credentials=credentials,
                close=not connections.keeps_alive,
            )
            await connection.request([section, exchange.body], exchange, is_head=head.method == "HEAD")
        finally:
            connections.give_back(connection)
