"""Builds the fleet: its backends, their polls, and what finds backends while the proxy runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from inference_engine_proxy_server.backends.base import Thresholds
from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.composition.access import forwards_keys
from inference_engine_proxy_server.composition.clients import via_name
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.service_types import is_service
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.discovery.config_watch import ConfigWatch
from inference_engine_proxy_server.discovery.discovery import Discovery, LookupSource
from inference_engine_proxy_server.discovery.dns_source import DnsSource
from inference_engine_proxy_server.discovery.mdns_source import MdnsSource
from inference_engine_proxy_server.discovery.source import Source
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.backend_load import BackendLoad, SharedLoad
from inference_engine_proxy_server.fleet.cache_refresher import CacheRefresher
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.fleet_updater import FleetUpdater, check_engines
from inference_engine_proxy_server.fleet.health import HealthRules
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.fleet.loaded_models import SwapRules
from inference_engine_proxy_server.models.catalog import ModelCatalog
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.processes.host import connection_limit
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits
from inference_engine_proxy_server.wire.idle_limit import IdleReserve
from inference_engine_proxy_server.wire.origin import Origin

__all__ = [
    "build_backend_factory",
    "build_cache_refresher",
    "build_config_watch",
    "build_discovery",
    "build_fleet",
    "build_fleet_updater",
    "thresholds_of",
]

_USUAL_REQUESTS_PROCESSING = 6  # without MAX_ALLOWED_REQUEST_QUEUE, in a llama.cpp backend with at most as many slots

_RESERVE_SHARE = 0.25  # of the client connections that the limit on open files allows; these take two fifths of it

BackendFactory = Callable[[BackendConfig], Backend]


def build_backend_factory(settings: Settings, deadlines: Deadlines, process: ProcessContext) -> BackendFactory:
    """A function that makes a backend from its configuration, at the start and when a backend joins the fleet."""
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

    reserve = IdleReserve(int(connection_limit() * _RESERVE_SHARE))
    swap_rules = SwapRules(
        settings.model_swap_wait_seconds, deadlines.clock, process.shared_leases, process.siblings.number
    )

    def make_backend(config: BackendConfig) -> Backend:
        origin = Origin.of(config.url, config.host_name)
        connections = BackendConnections(origin, limits, deadlines, settings.backend_ca_file, reserve)
        health = HealthTracker(rules, deadlines.clock())
        return Backend(config, connections, health, _load_of(config.url, process), swap_rules)

    return make_backend


def _load_of(url: str, process: ProcessContext) -> BackendLoad:
    if process.shared_leases is None:
        return BackendLoad()
    return SharedLoad(process.shared_leases, process.siblings.number, url)


def build_fleet(configuration: Configuration, make_backend: BackendFactory, deadlines: Deadlines) -> Fleet:
    """The backends with a base URL in the configuration."""
    settings = configuration.settings
    return Fleet(
        map(make_backend, configuration.fleet),
        settings.metrics_cache_ttl_seconds,
        settings.backend_queue_allowance,
        deadlines.clock,
    )


def build_cache_refresher(
    settings: Settings, fleet: Fleet, engines: Engines, process: ProcessContext
) -> CacheRefresher:
    """The loops that poll the backends of ``fleet``."""
    return CacheRefresher(
        fleet,
        engines,
        thresholds_of(settings),
        settings.metrics_cache_ttl_seconds,
        always_keep_alive=settings.llamacpp_keep_alive,
        tests_suspects=settings.health_test_requests,
        via=f"via: 1.1 {via_name(process)}\r\n".encode(),
        forwards_keys=forwards_keys(settings),
    )


def thresholds_of(settings: Settings) -> Thresholds:
    """The counts above which a backend is busy, unless the fleet file has others for it."""
    chosen = settings.max_allowed_request_queue
    usual = _USUAL_REQUESTS_PROCESSING if chosen is None else chosen
    return Thresholds(usual, settings.max_allowed_deferred, grows_with_slots=chosen is None)


def build_fleet_updater(
    configuration: Configuration,
    fleet: Fleet,
    placement: Placement,
    refresher: CacheRefresher,
    make_backend: BackendFactory,
    catalog: LiveCatalog,
) -> FleetUpdater:
    """The updater, which applies changes to ``fleet``, ``placement`` and ``catalog``."""
    policy = configuration.settings.balancing_policy

    def apply_models(models: Mapping[str, ModelConfig], default_model: str | None) -> None:
        catalog.replace(ModelCatalog(models, default_model))
        placement.set_default_model(catalog.now.default_model)
        placement.set_policies(ModelPolicies.named(policy, models))

    return FleetUpdater(
        fleet,
        make_backend,
        refresher.forget_engine,
        apply_models,
        configuration.models,
        configuration.default_model,
    )


def build_discovery(
    configuration: Configuration, engines: Engines, updater: FleetUpdater, sources: Sequence[Source], journal: Journal
) -> Discovery:
    """The sources of backends: the configuration, and ``sources``.

    Raises:
        UnknownEngineError: the configuration names an unknown engine.
    """
    check_engines((*configuration.fleet, *configuration.lookups), engines)
    return Discovery(configuration, engines, updater, _lookup_source, sources, journal)


def _lookup_source(entry: BackendConfig) -> LookupSource:
    return MdnsSource(entry) if is_service(entry.url) else DnsSource(entry)


def build_config_watch(
    configuration: Configuration,
    load: Callable[[], Configuration] | None,
    discovery: Discovery,
    metrics: RequestMetrics,
    journal: Journal,
    process: ProcessContext,
) -> ConfigWatch | None:
    """The watch that reads changes of the configuration with ``load``; ``None`` when it never changes."""
    if load is None:
        return None
    return ConfigWatch(configuration, load, discovery, metrics, journal, is_worker=process.is_worker)
