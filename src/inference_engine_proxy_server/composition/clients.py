"""Builds the client side: limits of connections, the overload guard, and the context that connections share."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import replace

from inference_engine_proxy_server.access.gate import Gate
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.dispatch.heartbeats import send_heartbeat
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.overload.memory_use import MemoryUse, container_limit_bytes
from inference_engine_proxy_server.overload.overload_guard import OverloadGuard
from inference_engine_proxy_server.processes.host import connection_limit
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.requests.destinations import Destinations
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.client_context import ClientContext, ClientLimits
from inference_engine_proxy_server.wire.forwarding import Forwarding
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import HeadLimits

__all__ = ["build_client_context", "build_client_load", "build_operator_context", "build_overload_guard", "via_name"]

Handler = Callable[[ProxiedRequest], Coroutine[None, None, None]]


def build_client_load(settings: Settings, deadlines: Deadlines) -> Load:
    """The resources that clients use, and their limits."""
    return Load(
        deadlines.clock,
        most_connections=settings.max_client_connections or connection_limit(),
        most_requests=settings.max_requests_in_flight,
        most_body_bytes=settings.max_request_bytes_in_flight,
    )


def build_overload_guard(
    settings: Settings, load: Load, metrics: RequestMetrics, journal: Journal, deadlines: Deadlines
) -> OverloadGuard:
    """The guard, which sheds requests at the limits of ``load``, except for those that the proxy answers itself."""
    memory = MemoryUse(settings.memory_limit_bytes or container_limit_bytes(processes=settings.workers))

    def count_shed(reason: str) -> None:
        metrics.count_shed(reason)
        what = reason.replace("_", " ")
        journal.note("shed", f"A request was rejected, because the proxy is overloaded: {what}.", severity="error")

    guard = OverloadGuard(load, memory, count_shed=count_shed, clock=deadlines.clock)
    for name, text, reading in (
        ("client_connections", "Open connections of clients.", lambda: float(len(load.connections))),
        ("client_requests_in_flight", "Requests being served.", lambda: float(load.requests)),
        ("request_body_bytes_in_flight", "Bytes of request bodies in memory.", lambda: float(load.body_bytes)),
        ("event_loop_lag_seconds", "Delay of the event loop.", lambda: guard.lag_seconds),
    ):
        metrics.add_gauge(name, text, reading)
    return guard


def via_name(process: ProcessContext) -> str:
    """The proxy's name in ``Via``, the same in all workers."""
    return f"inference-proxy-{process.service}"


def build_client_context(
    settings: Settings,
    deadlines: Deadlines,
    load: Load,
    destinations: Destinations,
    guard: OverloadGuard,
    gate: Gate,
    handle: Handler,
    observe: Callable[[ProxiedRequest], None],
    process: ProcessContext,
) -> ClientContext[ProxiedRequest]:
    """The context of all connections on PORT."""
    origin = secrets.token_hex(6)
    return ClientContext(
        _client_limits(settings),
        deadlines,
        load,
        Forwarding(settings.trusted_proxies, name=via_name(process), is_tls=settings.tls_cert_file is not None),
        map(f"{origin}-%x".__mod__, itertools.count(1)),
        ProxiedRequest,
        lambda head: destinations.of(head.method, head.path, head.passed_on, opens_websocket=head.upgrade is not None),
        guard.shed,
        gate.admit,
        settings.stream_heartbeat_seconds or NEVER,
        send_heartbeat,
        handle,
        observe,
    )


def build_operator_context(
    clients: ClientContext[ProxiedRequest], gate: Gate, handle: Handler
) -> ClientContext[ProxiedRequest]:
    """What all connections on ADMIN_PORT share: as on PORT, but without load limits and access to engines."""
    return replace(clients, admit=gate.admit_operator, handle=handle, load=Load(clients.deadlines.clock))


def _client_limits(settings: Settings) -> ClientLimits:
    head = HeadLimits(
        line_bytes=settings.max_request_line_bytes,
        total_bytes=settings.max_request_header_bytes,
        field_count=settings.max_request_header_count,
    )
    return ClientLimits(
        head=head,
        body_bytes=settings.max_request_body_bytes,
        header_seconds=settings.client_header_timeout_seconds,
        body_seconds=settings.client_body_timeout_seconds,
        body_total_seconds=settings.client_body_total_timeout_seconds,
        request_seconds=settings.request_timeout_seconds or NEVER,
        keep_alive_seconds=settings.client_keep_alive_seconds,
        write_stall_seconds=settings.client_write_stall_seconds,
    )
