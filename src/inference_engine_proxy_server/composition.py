"""What the parts are made of: from settings to each object that needs more than a line."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from fastapi import APIRouter, FastAPI
from pydantic import SecretStr

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.gate import Gate
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.backends.base import Thresholds
from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.dispatch.attempt import Attempts
from inference_engine_proxy_server.dispatch.backend_pool import BackendPool
from inference_engine_proxy_server.dispatch.fair_share import FairShare
from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.queue_updates import QueueUpdates
from inference_engine_proxy_server.dispatch.request_queue import QueueLimits, RequestQueue
from inference_engine_proxy_server.endpoints.failures import answer_failures
from inference_engine_proxy_server.endpoints.openapi import describe_proxied_paths
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.cache_refresher import CacheRefresher
from inference_engine_proxy_server.fleet.health_tracker import HealthRules, HealthTracker
from inference_engine_proxy_server.fleet.shared_backend import SharedBackend
from inference_engine_proxy_server.overload.memory_use import MemoryUse, container_limit_bytes
from inference_engine_proxy_server.overload.overload_guard import OverloadGuard
from inference_engine_proxy_server.processes.host import connection_limit
from inference_engine_proxy_server.processes.worker import WorkerContext
from inference_engine_proxy_server.processes.worker_fairness import WorkerFairness
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.expected_time.prefix_index import PrefixIndex
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits, Origin
from inference_engine_proxy_server.wire.client_context import ClientContext, ClientLimits
from inference_engine_proxy_server.wire.forwarding import Forwarding
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead

__all__ = [
    "backend_maker",
    "backend_pool",
    "cache_refresher",
    "chooser_maker",
    "client_context",
    "client_load",
    "forwarder",
    "gate",
    "key_ring",
    "make_app",
    "overload_guard",
]


def make_app(routers: Iterable[APIRouter], lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """The application that answers our own paths and describes all."""
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


# --- the fleet


def backend_maker(
    settings: Settings, deadlines: Deadlines, context: WorkerContext | None = None
) -> Callable[[BackendConfig], Backend]:
    """Makes a backend of what is said of it: at the start, and whenever the fleet changes."""
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
        health = HealthTracker(rules, deadlines.clock())
        if context is not None:
            return SharedBackend(config, connections, health, context.shared_leases, context.siblings.number)
        return Backend(config, connections, health)

    return make_backend


def backend_pool(
    configuration: Configuration, backends: Iterable[Backend], deadlines: Deadlines, turns: WorkerFairness | None = None
) -> BackendPool:
    """The fleet, the line of those who wait for it, and who chooses; why, is kept only where somebody can read it."""
    settings = configuration.settings
    is_explained = settings.explain_header or settings.admin_key is not None
    return BackendPool(
        backends,
        RequestQueue(QueueLimits(settings.max_queued_requests, settings.queue_timeout_seconds), deadlines),
        settings.metrics_cache_ttl_seconds,
        settings.backend_queue_allowance,
        deadlines.clock,
        turns,
        chooser_maker(settings, deadlines)(configuration.models, None),
        Decisions(answers_header=settings.explain_header) if is_explained else None,
    )


def chooser_maker(
    settings: Settings, deadlines: Deadlines
) -> Callable[[Mapping[str, ModelConfig], PromptRouter | None], PromptRouter | None]:
    """Makes who chooses by prompts, or lets one that is there do so by other policies; see :class:`FleetUpdater`."""

    def make_chooser(models: Mapping[str, ModelConfig], before: PromptRouter | None) -> PromptRouter | None:
        policies = ModelPolicies.of(settings.balancing_policy, models)
        if not policies.look_at_prompts:
            return None
        if before is None:
            return PromptRouter(policies, PrefixIndex(settings.prefix_index_bytes), TokenSizes(), deadlines.clock)
        before.policies = policies
        return before

    return make_chooser


def cache_refresher(settings: Settings, pool: BackendPool, engines: Engines) -> CacheRefresher:
    """Asks ``pool`` how it is."""
    return CacheRefresher(
        pool,
        engines,
        Thresholds(settings.max_allowed_request_queue, settings.max_allowed_deferred),
        settings.metrics_cache_ttl_seconds,
        always_keep_alive=settings.llamacpp_keep_alive,
        tests_suspects=settings.health_test_requests,
    )


def forwarder(settings: Settings, pool: BackendPool, metrics: RequestMetrics) -> Forwarder:
    """Passes requests on to ``pool``."""
    attempts = Attempts(
        pool,
        metrics,
        names_backend=settings.backend_header,
        keeps_credentials=not _has_keys(settings) or settings.forward_client_key,
    )
    fair_share = FairShare(takes_priority_header=settings.priority_header)
    updates = QueueUpdates(pool.line, to_all=settings.queue_updates)
    return Forwarder(pool, metrics, fair_share, updates, attempts)


# --- clients


def key_ring(settings: Settings) -> KeyRing | None:
    """The keys of clients; ``None``: nobody needs one.

    Raises:
        KeyFileError: the file of keys cannot be used.
    """
    if not _has_keys(settings):
        return None
    file = None if settings.api_keys_file is None else Path(settings.api_keys_file)
    return KeyRing(settings.api_keys, file, time.time)


def gate(settings: Settings, ring: KeyRing | None, allowances: Allowances) -> Gate:
    """Lets in who has a key that is good."""
    return Gate(
        ring,
        allowances,
        admin_key=_revealed(settings.admin_key),
        metrics_key=_revealed(settings.metrics_key),
        operators_elsewhere=settings.admin_port is not None,
    )


def client_load(settings: Settings, deadlines: Deadlines) -> Load:
    """What clients may take up, all together."""
    return Load(
        deadlines.clock,
        most_connections=settings.max_client_connections or connection_limit(),
        most_requests=settings.max_requests_in_flight,
        most_body_bytes=settings.max_request_bytes_in_flight,
    )


def overload_guard(settings: Settings, load: Load, metrics: RequestMetrics, deadlines: Deadlines) -> OverloadGuard:
    """Sends requests away when ``load`` is too much, but for those that this proxy answers itself."""
    memory = MemoryUse(settings.memory_limit_bytes or container_limit_bytes(processes=settings.workers))
    guard = OverloadGuard(load, memory, count_shed=metrics.count_shed, clock=deadlines.clock)
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
    classify: Callable[[RequestHead], object],
    shed: Callable[[str, RequestHead | None], None],
    admit: Callable[[RequestHead], object],
    handle: Callable[[ProxiedRequest], Coroutine[None, None, None]],
    observe: Callable[[ProxiedRequest], None],
) -> ClientContext[ProxiedRequest]:
    """What all connections of clients share; the callables are those of :class:`ClientContext`."""
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
    return ClientContext(
        limits, deadlines, load, forwarding, request_ids, ProxiedRequest, classify, shed, admit, handle, observe
    )


def _has_keys(settings: Settings) -> bool:
    return bool(settings.api_keys) or settings.api_keys_file is not None


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
