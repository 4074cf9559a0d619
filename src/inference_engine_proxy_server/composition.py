"""What the parts are made of: from settings to each object that needs more than a line."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from fastapi import APIRouter, FastAPI
from pydantic import SecretStr

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.core.backend import Backend
from inference_engine_proxy_server.core.health_tracker import HealthRules, HealthTracker
from inference_engine_proxy_server.core.memory_use import MemoryUse, container_limit_bytes
from inference_engine_proxy_server.core.overload_guard import OverloadGuard
from inference_engine_proxy_server.endpoints.failures import answer_failures
from inference_engine_proxy_server.endpoints.openapi import describe_proxied_paths
from inference_engine_proxy_server.host import connection_limit
from inference_engine_proxy_server.metrics import RequestMetrics
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits, Origin
from inference_engine_proxy_server.wire.client_context import ClientContext, ClientLimits
from inference_engine_proxy_server.wire.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.forwarding import Forwarding
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead

__all__ = ["backend_maker", "client_context", "client_load", "key_ring", "make_app", "overload_guard", "revealed"]


def make_app(routers: Iterable[APIRouter], lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
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
    answer_failures(app)
    describe_proxied_paths(app)
    return app


def backend_maker(settings: Settings, deadlines: Deadlines) -> Callable[[BackendConfig], Backend]:
    usual_seconds = settings.backend_timeout_seconds
    limits = BackendLimits(
        connect_seconds=settings.backend_connect_timeout_seconds,
        first_byte_seconds=settings.backend_first_byte_timeout_seconds or usual_seconds,
        pause_seconds=settings.backend_stream_idle_timeout_seconds or usual_seconds,
        idle_seconds=settings.backend_idle_connection_seconds,
    )
    rules = HealthRules(
        evidence_seconds=2 * settings.metrics_cache_ttl_seconds,
        suspect_after_seconds=settings.suspect_after_seconds,
        slow_start_seconds=settings.slow_start_seconds,
    )

    def make_backend(config: BackendConfig) -> Backend:
        connections = BackendConnections(Origin.of(config.url), limits, deadlines)
        return Backend(config, connections, HealthTracker(rules, deadlines.clock()))

    return make_backend


def client_load(settings: Settings, deadlines: Deadlines) -> Load:
    return Load(
        deadlines.clock,
        most_connections=settings.max_client_connections or connection_limit(),
        most_requests=settings.max_requests_in_flight,
        most_body_bytes=settings.max_request_bytes_in_flight,
    )


def overload_guard(
    settings: Settings,
    load: Load,
    metrics: RequestMetrics,
    deadlines: Deadlines,
    is_own: Callable[[RequestHead], bool],
) -> OverloadGuard:
    memory = MemoryUse(settings.memory_limit_bytes or container_limit_bytes())
    guard = OverloadGuard(load, memory, is_own=is_own, count_shed=metrics.count_shed, clock=deadlines.clock)
    for name, text, reading in (
        ("client_connections", "Open connections of clients.", lambda: float(len(load.connections))),
        ("client_requests_in_flight", "Requests that are being served.", lambda: float(load.requests)),
        ("request_body_bytes_in_flight", "Bytes of request bodies that are held.", lambda: float(load.body_bytes)),
        ("event_loop_lag_seconds", "How late the event loop is.", lambda: guard.lag_seconds),
    ):
        metrics.add_gauge(name, text, reading)
    return guard


def client_context(
    settings: Settings,
    deadlines: Deadlines,
    load: Load,
    shed: Callable[[str, RequestHead | None], None],
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
        body_total_seconds=settings.client_body_total_timeout_seconds,
        request_seconds=settings.request_timeout_seconds or NEVER,
        keep_alive_seconds=settings.client_keep_alive_seconds,
        write_stall_seconds=settings.client_write_stall_seconds,
    )
    process = secrets.token_hex(6)
    request_ids = (f"{process}-{number:x}" for number in itertools.count(1))
    is_tls = settings.tls_cert_file is not None
    forwarding = Forwarding(settings.trusted_proxies, name=f"inference-proxy-{process}", is_tls=is_tls)
    return ClientContext(limits, deadlines, load, forwarding, request_ids, shed, admit, handle, observe)


def revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def key_ring(settings: Settings) -> KeyRing | None:
    if not settings.api_keys and settings.api_keys_file is None:
        return None
    file = None if settings.api_keys_file is None else Path(settings.api_keys_file)
    return KeyRing(settings.api_keys, file, time.time)
