"""Builds one proxy: every part once, from the bottom up."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.composition.access import build_allowances, build_gate, build_key_ring
from inference_engine_proxy_server.composition.clients import (
    build_client_context,
    build_client_load,
    build_operator_context,
    build_overload_guard,
)
from inference_engine_proxy_server.composition.dashboard import build_dashboard
from inference_engine_proxy_server.composition.dispatch import (
    ForwarderParts,
    build_dispatcher,
    build_forwarder,
    build_placement,
    build_websocket_forwarder,
)
from inference_engine_proxy_server.composition.endpoints import (
    build_app,
    build_dashboard_router,
    build_destinations,
    build_routers,
)
from inference_engine_proxy_server.composition.fleet import (
    build_backend_factory,
    build_cache_refresher,
    build_config_watch,
    build_discovery,
    build_fleet,
    build_fleet_updater,
)
from inference_engine_proxy_server.composition.joining import (
    build_config_of,
    build_joining_router,
    build_joining_sources,
    build_roster,
)
from inference_engine_proxy_server.composition.metrics import build_metrics_page
from inference_engine_proxy_server.composition.replicas import (
    Replicas,
    build_affinity_table,
    build_conversations,
    build_replicas,
)
from inference_engine_proxy_server.composition.state import build_sharing
from inference_engine_proxy_server.composition.telemetry import build_access_log
from inference_engine_proxy_server.composition.tracing import build_traces
from inference_engine_proxy_server.composition.usage import build_ledger, build_spending, build_usage_answer
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.discovery.config_watch import ConfigWatch
from inference_engine_proxy_server.discovery.discovery import Discovery
from inference_engine_proxy_server.dispatch.limited_forwarder import LimitedForwarder
from inference_engine_proxy_server.dispatch.ownership import Ownership
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.renaming_forwarder import RenamingForwarder
from inference_engine_proxy_server.endpoints.all_workers import AllWorkers
from inference_engine_proxy_server.endpoints.asgi_bridge import AsgiBridge
from inference_engine_proxy_server.endpoints.pulse import pulse_router
from inference_engine_proxy_server.fleet.cache_refresher import CacheRefresher
from inference_engine_proxy_server.fleet.departures import Departures
from inference_engine_proxy_server.fleet.drift_watch import DriftWatch
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.hidden_models import HiddenModels
from inference_engine_proxy_server.fleet.listed_models import ListedModels
from inference_engine_proxy_server.fleet.membership import Membership
from inference_engine_proxy_server.fleet.model_labels import ModelLabels
from inference_engine_proxy_server.fleet.standstill_watch import StandstillWatch
from inference_engine_proxy_server.models.catalog import ModelCatalog
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.processes.process_context import Loop, Loops, ProcessContext, SoleProcess
from inference_engine_proxy_server.processes.readiness import Readiness
from inference_engine_proxy_server.proxy import Proxy
from inference_engine_proxy_server.requests.destinations import ANSWERED_HERE, Destination
from inference_engine_proxy_server.resume.assembly import RESULTS
from inference_engine_proxy_server.resume.rules import RULES
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.tasks.background import in_background
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.telemetry.access_log import AccessLog
from inference_engine_proxy_server.telemetry.exposition import Labels
from inference_engine_proxy_server.telemetry.finished_requests import FinishedRequests
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.usage.ledger import Ledger

__all__ = ["build_proxy"]

_FIRST_REPORT_SECONDS = 5.0  # that the start waits for sources of backends

Handler = Callable[[ProxiedRequest], Coroutine[None, None, None]]


def build_proxy(
    configuration: Configuration,
    load: Callable[[], Configuration] | None = None,
    process: ProcessContext | None = None,
) -> Proxy:
    """Build a proxy that is ready to be hosted.

    Args:
        configuration: which backends there are, or where they are found.
        load: reads the configuration again; ``None`` when it never changes.
        process: the context of the process; ``None`` for a single process.

    Raises:
        KeyFileError: the key file cannot be used.
        SettingsError: the usage file or the file of added backends cannot be used, or tracing lacks a package.
        UnknownEngineError: the configuration names an unknown engine.
    """
    settings, engines = configuration.settings, discover_engines()
    process = process or SoleProcess(build_roster(settings, engines))
    deadlines, journal = Deadlines(), Journal()
    catalog = LiveCatalog(ModelCatalog(configuration.models, configuration.default_model))
    # The fleet, and the path of a request to it.
    make_backend = build_backend_factory(settings, deadlines, process)
    fleet = build_fleet(configuration, make_backend, deadlines)
    refresher = build_cache_refresher(settings, fleet, engines, process)
    conversations, shared_conversations = build_conversations(settings, process)
    placement = build_placement(configuration, fleet, process, catalog, conversations)
    labels = Labels(process.siblings.number if process.siblings.others else None)
    names = ModelLabels(fleet, catalog, placement.lists)
    finished = FinishedRequests()
    metrics = RequestMetrics(RULES, RESULTS, labels, names.of, finished)
    access_log = build_access_log(settings, process, finished, metrics)
    spending = build_spending()
    sharing = build_sharing(settings, process, metrics, spending, deadlines.clock)
    updater = build_fleet_updater(configuration, fleet, placement, refresher, make_backend, catalog)
    config_of = build_config_of(lambda: _in_force(configuration, config_watch))
    sources = build_joining_sources(settings, process, config_of)
    discovery = build_discovery(configuration, engines, updater, sources, journal)
    departures = Departures(fleet)
    HiddenModels(fleet, catalog)
    DriftWatch(fleet, journal)
    listed = ListedModels(fleet, catalog, placement.lists)
    config_watch = build_config_watch(configuration, load, discovery, metrics, journal, process)
    dispatcher = build_dispatcher(settings, fleet, placement, deadlines, process)
    decisions = Decisions(answers_header=settings.explain_header)
    ring = build_key_ring(settings, journal)
    table, table_loops = build_affinity_table(sharing, fleet)
    ownership = Ownership(table, process.siblings)
    ledger = build_ledger(settings, spending, metrics, process, is_shared=sharing is not None)
    parts = ForwarderParts(settings, dispatcher, decisions, metrics, journal, ring, ownership, catalog, listed)
    forwarder, websockets = build_forwarder(parts, ledger), build_websocket_forwarder(parts, deadlines)
    traces = build_traces(settings, fleet, deadlines)
    # The proxy's own paths.
    allowances = build_allowances(deadlines.clock, spending, sharing)
    readiness = Readiness(settings.drain_grace_seconds, process.announce_readiness_probe, deadlines.clock)
    workers: AllWorkers
    membership: Membership
    replicas = build_replicas(
        settings, sharing, process, fleet, shared_conversations, lambda: membership, lambda: workers.own_fleet(),
        build_usage_answer(settings),
    )  # fmt: skip
    neighbours = None if replicas is None else replicas.neighbours
    workers = AllWorkers(
        dispatcher, decisions, ring, allowances, process.siblings,
        process.order if replicas is None else replicas.order, departures, neighbours,
    )  # fmt: skip
    client_load = build_client_load(settings, deadlines)
    metrics_page = build_metrics_page(dispatcher, discovery, client_load, metrics, names, labels, process)
    guard = build_overload_guard(settings, client_load, metrics, journal, deadlines)
    dashboard = build_dashboard(
        settings, dispatcher, client_load, finished, journal, process, discovery.sources,
        is_own=lambda record: destinations.of(record.method, record.path) in ANSWERED_HERE,
    )  # fmt: skip
    change_roster = process.change_roster if replicas is None else replicas.change_roster
    routers = [
        *build_routers(
            settings, dispatcher, discovery, departures, ring, allowances, readiness, workers, metrics_page, listed,
            sharing, neighbours,
        ),
        build_joining_router(
            settings, fleet, discovery, departures, workers, process, config_of, engines, change_roster
        ),
        build_dashboard_router(settings, dashboard, lambda: _in_force(configuration, config_watch)),
        pulse_router(hashlib.sha256(process.service.encode()).hexdigest()[:12]),  # the name itself is for engines only
    ]  # fmt: skip
    answers = {**workers.answers, **metrics_page.answers, **ownership.answers, **dashboard.answers}
    loops = {
        "deadlines": deadlines.run,
        "overload guard": guard.run,
        "cache refresher": refresher.run,
        "discovery": discovery.run,
        "standstill watch": StandstillWatch(fleet).run,
        **dashboard.loops,
        **_optional_loops(config_watch, ring, access_log, ledger),
        **traces.loops,
        **({} if sharing is None else sharing.loops),
        **({} if replicas is None else replicas.loops),
        **table_loops,
        **process.loops(answers, dispatcher.fill_slots_of_siblings),
    }
    app = build_app(routers, _lifespan(loops, discovery, refresher, fleet, replicas))
    membership = Membership(fleet, process.drained_urls, process.announce_backends)  # the last observer of the fleet
    # The client side.
    bridge = AsgiBridge(app)
    gate = build_gate(settings, ring, allowances)
    destinations = build_destinations(settings, app, routers)
    clients = build_client_context(
        settings, deadlines, client_load, destinations, guard, gate,
        new_request=traces.request_class,
        handle=traces.handling(_handler(bridge, placement, forwarder, websockets)),
        observe=traces.observing(_recorder(finished, deadlines.clock)),
        process=process,
    )  # fmt: skip
    operators = build_operator_context(clients, gate, bridge.answer)
    linger_seconds = min(settings.client_keep_alive_seconds, settings.drain_timeout_seconds)
    return Proxy(app, clients, operators, membership, guard, readiness, config_watch, dashboard.feed, linger_seconds)


def _in_force(configuration: Configuration, config_watch: ConfigWatch | None) -> Configuration:
    return configuration if config_watch is None else config_watch.in_force


def _optional_loops(
    config_watch: ConfigWatch | None, ring: KeyRing | None, access_log: AccessLog | None, ledger: Ledger | None
) -> Loops:
    loops: dict[str, Loop] = {}
    if config_watch is not None:
        loops["settings"] = config_watch.run
    if ring is not None:
        loops["keys"] = ring.watch
    if access_log is not None:
        loops["access log"] = access_log.run
    if ledger is not None:
        loops["usage ledger"] = ledger.run
    return loops


def _handler(
    bridge: AsgiBridge,
    placement: Placement,
    forwarder: RenamingForwarder | LimitedForwarder,
    websockets: RenamingForwarder | LimitedForwarder,
) -> Handler:
    answer = bridge.answer
    unusual = (*ANSWERED_HERE, Destination.WEBSOCKET)

    def handle(request: ProxiedRequest) -> Coroutine[None, None, None]:
        # The method is looked up each time, because a change of the fleet file replaces it.
        if request.head.destination not in unusual:
            if placement.reads_prompts:
                request.read_with_prompt()  # first of all, so that the body is decoded once
            return forwarder.forward(request)
        return websockets.forward(request) if request.head.destination is Destination.WEBSOCKET else answer(request)

    return handle


def _recorder(finished: FinishedRequests, clock: Callable[[], float]) -> Callable[[ProxiedRequest], None]:
    add = finished.add

    def record(request: ProxiedRequest) -> None:
        add(request.record(clock()))

    return record


def _lifespan(
    loops: Loops, discovery: Discovery, refresher: CacheRefresher, fleet: Fleet, replicas: Replicas | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with in_background(loops):
            if replicas is not None:
                await replicas.first_read()
            await discovery.first_reports(_FIRST_REPORT_SECONDS)
            await refresher.first_round()
            yield
        if replicas is not None:
            await replicas.neighbours.leave()
            await replicas.sharing.state.close()
        fleet.close()

    return lifespan
