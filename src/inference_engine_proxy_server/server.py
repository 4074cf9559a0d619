"""Composition root: builds each object once, says who knows whom, and runs until told to stop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.gate import Gate, is_for_operators
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.api_keys import KeyFileError
from inference_engine_proxy_server.backends.base import Thresholds
from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.core.backend_pool import Backend, BackendPool
from inference_engine_proxy_server.core.cache_refresher import CacheRefresher
from inference_engine_proxy_server.core.forwarder import Forwarder
from inference_engine_proxy_server.core.key_limits import KeyLimits
from inference_engine_proxy_server.core.path_policy import PathPolicy
from inference_engine_proxy_server.endpoints.admin import admin_router
from inference_engine_proxy_server.endpoints.docs import docs_router
from inference_engine_proxy_server.endpoints.health import health_router
from inference_engine_proxy_server.endpoints.models import models_router
from inference_engine_proxy_server.endpoints.openapi import describe_proxied_paths
from inference_engine_proxy_server.endpoints.prometheus import prometheus_router
from inference_engine_proxy_server.endpoints.welcome import welcome_router
from inference_engine_proxy_server.host import ACCEPT_BACKLOG, Host, listen, raise_file_limit
from inference_engine_proxy_server.logs import AccessLog, configure_logging
from inference_engine_proxy_server.metrics import RequestMetrics
from inference_engine_proxy_server.settings import Settings
from inference_engine_proxy_server.wire.asgi_bridge import AsgiBridge
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits, Origin
from inference_engine_proxy_server.wire.client_connection import ClientConnection
from inference_engine_proxy_server.wire.client_context import ClientContext, ClientLimits
from inference_engine_proxy_server.wire.deadlines import Deadlines
from inference_engine_proxy_server.wire.exchange import Exchange, Outcome
from inference_engine_proxy_server.wire.forwarding import Forwarding
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(settings: Settings, on_started: Callable[[str], None] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, which do nothing more to this process after that.

    Args:
        settings: with at least one backend.
        on_started: called with our base URL once requests are answered; ``None``: nobody wants to know.

    Returns:
        The process's exit code: 0 after a stop that was asked for, 1 if an address cannot be
        listened on, or the certificate or the file of keys cannot be used.
    """
    configure_logging(settings.log_level, settings.log_format)
    raise_file_limit()
    # uvicorn raises the signals it caught once more when it is done; being told to stop is no reason to die of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(listen("PORT", settings.host, settings.port))
            operators = None
            if settings.admin_port is not None:
                operators = stack.enter_context(listen("ADMIN_PORT", settings.host, settings.admin_port))
            _check_certificate(settings.tls_cert_file, settings.tls_key_file)
            host = make_host(settings, on_started, operators)
        except (KeyFileError, OSError) as error:
            logger.error("%s", error)
            return 1
        _warn_of_open_port(settings)
        host.run(sockets=[listener])
    return 0


def _check_certificate(certificate: str | None, key: str | None) -> None:
    """Raises ``OSError`` that names the settings, where uvicorn would only say what OpenSSL says."""
    if certificate is not None:
        try:
            # With a password given, OpenSSL does not ask the terminal for one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise OSError(f"TLS_CERT_FILE {certificate}, TLS_KEY_FILE {key}: {reason}") from error


def _warn_of_open_port(settings: Settings) -> None:
    is_loopback = settings.host == "localhost" or settings.host.startswith("127.") or settings.host == "::1"
    if not is_loopback and not settings.api_keys and settings.api_keys_file is None:
        logger.warning(
            "everybody who reaches HOST %s can use the engines: set API_KEYS, or let a proxy in front ask for keys",
            settings.host,
        )


def make_host(
    settings: Settings,
    on_started: Callable[[str], None] | None = None,
    operators: socket.socket | None = None,
) -> uvicorn.Server:
    """The server that hosts everything, ready to ``run`` or ``serve`` on sockets that it is given.

    Args:
        on_started: as for :func:`run`.
        operators: listens on ADMIN_PORT; ``None``: there is none.
    """
    proxy = _Proxy(settings)
    config = uvicorn.Config(
        proxy.app,
        http=cast(type[asyncio.Protocol], proxy.accept),
        ws="none",
        lifespan="on",
        log_config=None,
        proxy_headers=False,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_seconds),
        backlog=ACCEPT_BACKLOG,
    )
    return Host(config, proxy, on_started, operators)


class _Proxy:
    """All the parts, each made once.

    Attributes:
        app: our own paths.
        is_draining: it has been told to stop.
    """

    def __init__(self, settings: Settings) -> None:
        self.is_draining = False
        self._deadlines = Deadlines()
        self._metrics = RequestMetrics()
        self._access_log = AccessLog(sys.stdout, settings.log_format) if settings.access_log else None
        self._pool = _backend_pool(settings, self._deadlines)
        self._refresher = CacheRefresher(
            self._pool,
            discover_engines(),
            Thresholds(settings.max_allowed_request_queue, settings.max_allowed_deferred),
            settings.metrics_cache_ttl_seconds,
            always_keep_alive=settings.llamacpp_keep_alive,
        )
        self._key_ring = _key_ring(settings)
        allowances = Allowances(self._deadlines.clock)
        self._forwarder = Forwarder(
            self._pool,
            PathPolicy(settings.blocked_paths),
            self._metrics,
            names_backend=settings.backend_header,
            keeps_credentials=self._key_ring is None or settings.forward_client_key,
        )
        self._key_limits = None if self._key_ring is None else KeyLimits(self._deadlines.clock)
        routers = (
            welcome_router(),
            health_router(self._pool, lambda: self.is_draining, names_need_key=settings.health_details == "key"),
            models_router(self._pool),
            prometheus_router(self._pool, self._metrics),
            docs_router(),
            admin_router(self._key_ring, allowances),
        )
        self.app = _make_app(routers, self._lifespan)
        self._bridge = AsgiBridge(self.app)
        self._own_paths = frozenset(
            getattr(route, "path", "") for holder in (self.app, *routers) for route in holder.routes
        )
        gate = Gate(
            self._key_ring,
            allowances,
            admin_key=_revealed(settings.admin_key),
            metrics_key=_revealed(settings.metrics_key),
            operators_elsewhere=settings.admin_port is not None,
            is_open=self._is_open,
        )
        self._clients = _client_context(settings, self._deadlines, gate.admit, self._handle, self._observe)
        self._operators = replace(self._clients, admit=gate.admit_operator, handle=self._bridge.answer)

    def accept(self, server_state: Any, **_: object) -> ClientConnection:
        """A protocol for a connection that uvicorn has accepted."""
        return ClientConnection(self._clients, server_state.connections, server_state.tasks)

    def accept_operator(self, server_state: Any) -> ClientConnection:
        """The same for one on ADMIN_PORT."""
        return ClientConnection(self._operators, server_state.connections, server_state.tasks)

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as background:
            tasks = [background.create_task(self._deadlines.run()), background.create_task(self._refresher.run())]
            if self._key_ring is not None:
                tasks.append(background.create_task(self._key_ring.watch()))
            if self._access_log is not None:
                tasks.append(background.create_task(self._access_log.run()))
            await self._refresher.first_round()
            yield
            for task in tasks:
                task.cancel()
        for backend in self._pool.backends:
            backend.connections.close()

    def _handle(self, exchange: Exchange) -> Coroutine[None, None, None]:
        head = exchange.head
        if (head.path in self._own_paths and head.method in ("GET", "HEAD")) or is_for_operators(head):
            return self._bridge.answer(exchange)
        if self._key_limits is not None:
            if head.access is None:  # only a browser's preflight comes here without a key
                return _pass_preflight(exchange)
            self._key_limits.begin(exchange)
        return self._forwarder.forward(exchange)

    def _is_open(self, method: str, path: str) -> bool:
        """Whether a request needs no key: what is asked of this proxy itself, but for the list of models."""
        return path in self._own_paths and method in ("GET", "HEAD") and path != "/v1/models"

    def _observe(self, exchange: Exchange) -> None:
        if self._key_limits is not None and exchange.is_counted:
            self._key_limits.end(exchange)
        seconds = self._deadlines.clock() - exchange.started_at
        first_byte_seconds = None if exchange.first_byte_at is None else exchange.first_byte_at - exchange.started_at
        head = exchange.head
        self._metrics.count_request(head.path, exchange.backend, exchange.status, seconds, first_byte_seconds)
        if exchange.begun and exchange.outcome is not Outcome.COMPLETE:
            self._metrics.count_abort("client" if exchange.outcome is Outcome.CLIENT_LEFT else "backend")
        if self._access_log is not None:
            self._access_log.write(
                client=exchange.client,
                method=head.method,
                path=head.path,
                status=exchange.status,
                outcome=exchange.outcome.value,
                backend=exchange.backend,
                model=exchange.model,
                first_byte_seconds=first_byte_seconds,
                seconds=seconds,
                sent_bytes=exchange.sent_bytes,
                request_id=exchange.request_id,
            )


async def _pass_preflight(exchange: Exchange) -> None:
    exchange.pass_preflight()  # no engine needs to see it


def _make_app(
    routers: Iterable[APIRouter], lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> FastAPI:
    app = FastAPI(
        title="inference-engine-proxy-server",
        version=__version__,
        description="One OpenAI-compatible address in front of many LLM engine servers.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    for router in routers:
        app.include_router(router)
    describe_proxied_paths(app)
    return app


def _backend_pool(settings: Settings, deadlines: Deadlines) -> BackendPool:
    limits = BackendLimits(
        connect_seconds=settings.backend_connect_timeout_seconds,
        reply_seconds=settings.backend_timeout_seconds,
        idle_seconds=settings.backend_idle_connection_seconds,
    )
    key = _revealed(settings.backend_api_key)
    backends = [Backend(url, BackendConnections(Origin.of(url), limits, deadlines), key) for url in settings.backends]
    return BackendPool(backends, settings.metrics_cache_ttl_seconds, deadlines.clock)


def _client_context(
    settings: Settings,
    deadlines: Deadlines,
    admit: Callable[[RequestHead], object],
    handle: Callable[[Exchange], Coroutine[None, None, None]],
    observe: Callable[[Exchange], None],
) -> ClientContext:
    head = HeadLimits(
        line_bytes=settings.max_request_line_bytes,
        total_bytes=settings.max_request_header_bytes,
        field_count=settings.max_request_header_count,
    )
    limits = ClientLimits(
        head=head,
        body_bytes=settings.max_request_body_bytes,
        header_seconds=settings.client_header_timeout_seconds,
        body_seconds=settings.client_body_timeout_seconds,
        keep_alive_seconds=settings.client_keep_alive_seconds,
        write_stall_seconds=settings.client_write_stall_seconds,
    )
    process = secrets.token_hex(6)
    request_ids = (f"{process}-{number:x}" for number in itertools.count(1))
    is_tls = settings.tls_cert_file is not None
    forwarding = Forwarding(settings.trusted_proxies, name=f"inference-proxy-{process}", is_tls=is_tls)
    return ClientContext(limits, deadlines, forwarding, request_ids, admit, handle, observe)


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _key_ring(settings: Settings) -> KeyRing | None:
    if not settings.api_keys and settings.api_keys_file is None:
        return None
    file = None if settings.api_keys_file is None else Path(settings.api_keys_file)
    return KeyRing(settings.api_keys, file, time.time)
