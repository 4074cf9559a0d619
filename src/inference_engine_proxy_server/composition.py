"""What the parts are made of: from settings to each object that needs more than a line."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
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
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.dispatch.attempt import Attempts
from inference_engine_proxy_server.dispatch.fair_share import FairShare
from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.queue_updates import QueueUpdates
from inference_engine_proxy_server.dispatch.request_queue import QueueLimits, RequestQueue
from inference_engine_proxy_server.endpoints.failures import answer_failures
from inference_engine_proxy_server.endpoints.openapi import describe_proxied_paths
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.backend_load import BackendLoad, SharedLoad
from inference_engine_proxy_server.fleet.cache_refresher import CacheRefresher
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.health import HealthRules
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.overload.memory_use import MemoryUse, container_limit_bytes
from inference_engine_proxy_server.overload.overload_guard import OverloadGuard
from inference_engine_proxy_server.processes.host import connection_limit
from inference_engine_proxy_server.processes.worker import WorkerContext
from inference_engine_proxy_server.processes.worker_fairness import Fairness
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.placement import Placement
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
    "cache_refresher",
    "client_context",
    "client_load",
    "decisions",
    "dispatcher",
    "fleet",
    "forwarder",
    "gate",
    "key_ring",
    "make_app",
    "overload_guard",
    "placement",
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


_SERVICE = secrets.token_hex(6)  # workers inherit it, because they are forked


# --- the fleet


def backend_maker(
    settings: Settings, deadlines: Deadlines, context: WorkerContext | None = None
) -> Callable[[BackendConfig], Backend]:
    """Makes backends from their configuration: at the start, and when one joins the fleet."""
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
        connections = BackendConnections(Origin.of(config.url), limits, deadlines, settings.backend_ca_file)
        health = HealthTracker(rules, deadlines.clock())
        load = BackendLoad()
        if context is not None:
            load = SharedLoad(context.shared_leases, context.siblings.number, config.url)
        return Backend(config, connections, health, load)

    return make_backend


def fleet(settings: Settings, backends: Iterable[Backend], deadlines: Deadlines) -> Fleet:
    """The fleet of ``backends``."""
    return Fleet(backends, settings.metrics_cache_ttl_seconds, settings.backend_queue_allowance, deadlines.clock)


def placement(configuration: Configuration, fleet: Fleet, *, is_shared: bool = False) -> Placement:
    """Chooses among the backends of ``fleet``, and records why only where someone can read it.

    Args:
        configuration: has the policies.
        fleet: the fleet.
        is_shared: other workers send requests to the backends, too.
    """
    settings = configuration.settings
    policies = ModelPolicies.named(settings.balancing_policy, configuration.models)
    return Placement(
        fleet,
        PromptRouter(policies, settings.prefix_index_bytes, fleet.clock),
        is_shared=is_shared,
        records_decisions=settings.explain_header or settings.admin_key is not None,
        retry_after_seconds=max(1, math.ceil(settings.metrics_cache_ttl_seconds)),
    )


def decisions(settings: Settings) -> Decisions:
    """The record of decisions."""
    return Decisions(answers_header=settings.explain_header)


def dispatcher(
    settings: Settings,
    fleet: Fleet,
    placement: Placement,
    deadlines: Deadlines,
    fairness: Fairness,
) -> Dispatcher:
    """Grants leases on the backends of ``fleet``; see :class:`Dispatcher`."""
    limits = QueueLimits(settings.max_queued_requests, settings.queue_timeout_seconds)
    return Dispatcher(fleet, placement, RequestQueue(limits, deadlines), fairness)


def cache_refresher(settings: Settings, fleet: Fleet, engines: Engines, name: str) -> CacheRefresher:
    """Polls the backends of ``fleet``."""
    return CacheRefresher(
        fleet,
        engines,
        Thresholds(settings.max_allowed_request_queue, settings.max_allowed_deferred),
        settings.metrics_cache_ttl_seconds,
        always_keep_alive=settings.llamacpp_keep_alive,
        tests_suspects=settings.health_test_requests,
        via=f"via: 1.1 {name}\r\n".encode(),
    )


def forwarder(settings: Settings, dispatcher: Dispatcher, decisions: Decisions, metrics: RequestMetrics) -> Forwarder:
    """Forwards requests to the backends that ``dispatcher`` grants leases on."""
    attempts = Attempts(
        dispatcher,
        metrics,
        names_backend=settings.backend_header,
        keeps_credentials=not _has_keys(settings) or settings.forward_client_key,
        retry_statuses=settings.retry_statuses,
        first_token_seconds=settings.first_token_timeout_seconds,
    )
    fair_share = FairShare(takes_priority_header=settings.priority_header)
    updates = QueueUpdates(dispatcher.queue, to_all=settings.queue_updates)
    return Forwarder(dispatcher, decisions, metrics, fair_share, updates, attempts)


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


def via_name(*, is_shared: bool) -> str:
    """This proxy's name in ``Via``; all workers of one service share one."""
    return f"inference-proxy-{_SERVICE if is_shared else secrets.token_hex(6)}"


def client_context(
    settings: Settings,
    name: str,
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
    request_ids = map(f"{process}-%x".__mod__, itertools.count(1))
    is_tls = settings.tls_cert_file is not None
    forwarding = Forwarding(settings.trusted_proxies, name=name, is_tls=is_tls)
    return ClientContext(
        limits, deadlines, load, forwarding, request_ids, ProxiedRequest, classify, shed, admit, handle, observe
    )


def _has_keys(settings: Settings) -> bool:
    return bool(settings.api_keys) or settings.api_keys_file is not None


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
