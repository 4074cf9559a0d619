"""Builds the application for the proxy's own paths."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from fastapi import APIRouter, FastAPI

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.composition.dashboard import Dashboard
from inference_engine_proxy_server.composition.state import Sharing
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.discovery.discovery import Discovery
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.endpoints.admin import admin_router
from inference_engine_proxy_server.endpoints.all_workers import AllWorkers
from inference_engine_proxy_server.endpoints.dashboard import dashboard_router
from inference_engine_proxy_server.endpoints.docs import docs_router
from inference_engine_proxy_server.endpoints.failures import answer_failures
from inference_engine_proxy_server.endpoints.health import health_router
from inference_engine_proxy_server.endpoints.health_report import HealthReport
from inference_engine_proxy_server.endpoints.models import models_router
from inference_engine_proxy_server.endpoints.openapi import describe_proxied_paths
from inference_engine_proxy_server.endpoints.page import page_router
from inference_engine_proxy_server.endpoints.prometheus import MetricsPage, prometheus_router
from inference_engine_proxy_server.endpoints.usage import OtherReplicas, usage_router
from inference_engine_proxy_server.fleet.departures import Departures
from inference_engine_proxy_server.fleet.listed_models import ListedModels
from inference_engine_proxy_server.processes.readiness import Readiness
from inference_engine_proxy_server.requests.destinations import Destinations
from inference_engine_proxy_server.requests.path_policy import PathPolicy

__all__ = ["build_app", "build_dashboard_router", "build_destinations", "build_routers"]


def build_routers(
    settings: Settings,
    dispatcher: Dispatcher,
    discovery: Discovery,
    departures: Departures,
    ring: KeyRing | None,
    allowances: Allowances,
    readiness: Readiness,
    workers: AllWorkers,
    metrics_page: MetricsPage,
    listed: ListedModels,
    sharing: Sharing | None,
    other_replicas: OtherReplicas | None,
) -> Sequence[APIRouter]:
    """The proxy's own paths."""
    fleet = dispatcher.fleet
    usage_file = None if settings.usage_file is None else Path(settings.usage_file)
    is_shared = sharing is not None
    report = HealthReport(
        dispatcher,
        lambda: discovery.members,
        queue_limit=settings.max_queued_requests,
        needs_key=ring is not None,
        hides_names=settings.health_details == "key",
        shared_state=None if sharing is None else sharing.described,
    )
    return (
        page_router(lambda has_key: report.report(has_key=has_key)),
        health_router(fleet, report, readiness.probe),
        models_router(dispatcher, listed, settings.metrics_cache_ttl_seconds),
        prometheus_router(metrics_page),
        docs_router(),
        admin_router(fleet, departures, ring, allowances, workers, discovery.sources, is_shared=is_shared),
        usage_router(usage_file, time.time, other_replicas),
    )


def build_dashboard_router(
    settings: Settings, dashboard: Dashboard, configuration: Callable[[], Configuration]
) -> APIRouter:
    """The endpoints of the dashboard; ``configuration``: what is in force."""
    return dashboard_router(
        dashboard.reporter,
        dashboard.feed,
        dashboard.cancelling,
        configuration,
        hides_names=settings.health_details == "key",
    )


def build_app(
    routers: Iterable[APIRouter], lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> FastAPI:
    """An application that answers the proxy's own paths, and describes these and the forwarded ones."""
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


def build_destinations(settings: Settings, app: FastAPI, routers: Iterable[APIRouter]) -> Destinations:
    """The destinations of requests, by the paths of ``app`` and the deny-list."""
    routes = itertools.chain(app.routes, *(router.routes for router in routers))
    own_paths = {getattr(route, "path", "") for route in routes}
    return Destinations(own_paths, PathPolicy(settings.blocked_paths).blocks)
