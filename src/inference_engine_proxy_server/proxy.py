"""The proxy as a whole: all its parts, who knows whom, and what becomes of each request."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI

from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.key_limits import KeyLimits
from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.composition import (
    backend_maker,
    cache_refresher,
    client_context,
    client_load,
    decisions,
    dispatcher,
    fleet,
    forwarder,
    gate,
    key_ring,
    make_app,
    overload_guard,
    placement,
    via_name,
)
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.endpoints.admin import admin_router
from inference_engine_proxy_server.endpoints.all_workers import AllWorkers
from inference_engine_proxy_server.endpoints.asgi_bridge import AsgiBridge
from inference_engine_proxy_server.endpoints.docs import docs_router
from inference_engine_proxy_server.endpoints.health import health_router
from inference_engine_proxy_server.endpoints.models import models_router
from inference_engine_proxy_server.endpoints.prometheus import MetricsPage, prometheus_router
from inference_engine_proxy_server.endpoints.welcome import welcome_router
from inference_engine_proxy_server.fleet.config_watch import ConfigWatch
from inference_engine_proxy_server.fleet.fleet_updater import FleetUpdater, check_engines
from inference_engine_proxy_server.processes.siblings import Siblings
from inference_engine_proxy_server.processes.worker import WorkerContext
from inference_engine_proxy_server.processes.worker_fairness import Fairness, SoleWorker, WorkerFairness
from inference_engine_proxy_server.requests.destinations import ANSWERED_HERE, Destinations
from inference_engine_proxy_server.requests.path_policy import PathPolicy
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.tasks.keep_running import keep_running
from inference_engine_proxy_server.telemetry.logs import AccessLog
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.client_connection import ClientConnection
from inference_engine_proxy_server.wire.load import Load

__all__ = ["Proxy"]

_WATCHED_SECONDS = 60.0  # since /readyz was last asked for, in which somebody is taken to act on its answer
_TELL_SECONDS = 10.0  # between two times that siblings are told of it


class Proxy:
    """All the parts, each made once.

    Attributes:
        app: our own paths.
        is_draining: it has been told to stop.
    """

    def __init__(
        self,
        configuration: Configuration,
        load: Callable[[], Configuration] | None,
        context: WorkerContext | None = None,
    ) -> None:
        settings = configuration.settings
        self.is_draining = False
        self._context = context
        self._grace_seconds = settings.drain_grace_seconds
        self._readiness_asked_at = -math.inf
        self._deadlines = Deadlines()
        self._clock = self._deadlines.clock
        self._metrics = RequestMetrics()
        self._load = client_load(settings, self._deadlines)
        self._guard = overload_guard(settings, self._load, self._metrics, self._deadlines)
        self._access_log = None
        if settings.access_log:
            self._access_log = AccessLog(sys.stdout, settings.log_format, is_shared=context is not None)
        self._record_subscribers: list[Callable[[RequestRecord], None]] = [self._metrics.count_request]
        if self._access_log is not None:
            self._record_subscribers.append(self._access_log.write)
        engines = discover_engines()
        check_engines(configuration.fleet, engines)
        make_backend = backend_maker(settings, self._deadlines, context)
        fairness: Fairness = SoleWorker()
        if context is not None:
            fairness = WorkerFairness(context.shared_leases, context.siblings.number)
        self._fleet = fleet(settings, map(make_backend, configuration.fleet), self._deadlines)
        routing = placement(configuration, self._fleet, is_shared=context is not None)
        self._dispatcher = dispatcher(settings, self._fleet, routing, self._deadlines, fairness)
        recorded = decisions(settings)
        for url in () if context is None else context.drained_urls:
            self.obey(url, is_draining=True)
        name = via_name(is_shared=context is not None)
        self._refresher = cache_refresher(settings, self._fleet, engines, name)
        self._config_watch = None
        if load is not None:
            keeper = FleetUpdater(
                self._fleet,
                engines,
                make_backend,
                self._refresher.forget_engine,
                lambda models: routing.set_policies(ModelPolicies.named(settings.balancing_policy, models)),
                configuration.models,
            )
            self._config_watch = ConfigWatch(configuration, load, keeper, self._metrics, hears_signals=context is None)
        self._key_ring = key_ring(settings)
        self._key_limits = None if self._key_ring is None else KeyLimits(self._deadlines.clock)
        self._forwarder = forwarder(settings, self._dispatcher, recorded, self._metrics)
        allowances = Allowances(self._deadlines.clock)
        siblings, order = (Siblings(), None) if context is None else (context.siblings, context.order)
        everybody = AllWorkers(self._dispatcher, recorded, self._key_ring, allowances, siblings, order)
        page = MetricsPage(self._dispatcher, self._metrics, siblings)
        self._answers = {**everybody.answers, **page.answers}
        routers = (
            welcome_router(),
            health_router(self._fleet, self._is_not_ready, names_need_key=settings.health_details == "key"),
            models_router(self._fleet),
            prometheus_router(page),
            docs_router(),
            admin_router(self._fleet, self._key_ring, allowances, everybody),
        )
        self.app = make_app(routers, self._lifespan)
        self._bridge = AsgiBridge(self.app)
        own_paths = {getattr(route, "path", "") for holder in (self.app, *routers) for route in holder.routes}
        destinations = Destinations(own_paths, PathPolicy(settings.blocked_paths).blocks)
        doorkeeper = gate(settings, self._key_ring, allowances)
        self._clients = client_context(
            settings,
            name,
            self._deadlines,
            self._load,
            lambda head: destinations.of(head.method, head.path, head.passed_on),
            self._guard.shed,
            doorkeeper.admit,
            self._handle,
            self._finish,
        )
        self._operators = replace(
            self._clients,
            admit=doorkeeper.admit_operator,
            handle=self._bridge.answer,
            load=Load(self._deadlines.clock),  # without bounds
        )

    def accept(self, server_state: Any, **_: object) -> ClientConnection[ProxiedRequest]:
        """A protocol for a connection that uvicorn has accepted."""
        return ClientConnection(self._clients, server_state.connections, server_state.tasks)

    def accept_operator(self, server_state: Any) -> ClientConnection[ProxiedRequest]:
        """The same for one on ADMIN_PORT."""
        return ClientConnection(self._operators, server_state.connections, server_state.tasks)

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        loops = {
            "deadlines": self._deadlines.run,
            "overload guard": self._guard.run,
            "cache refresher": self._refresher.run,
        }
        if self._context is not None:
            loops["siblings"] = partial(self._context.siblings.answer, self._context.inbox, self._answers)
            loops["slots that siblings free"] = self._dispatcher.fill_slots_of_siblings
        if self._config_watch is not None:
            loops["settings"] = self._config_watch.run
        if self._key_ring is not None:
            loops["keys"] = self._key_ring.watch
        if self._access_log is not None:
            loops["access log"] = self._access_log.run
        async with asyncio.TaskGroup() as background:
            tasks = [background.create_task(keep_running(name, run), name=name) for name, run in loops.items()]
            await self._refresher.first_round()
            yield
            for task in tasks:
                task.cancel()
        for backend in self._fleet.backends:
            backend.connections.close()

    def _handle(self, request: ProxiedRequest) -> Coroutine[None, None, None]:
        if request.head.destination in ANSWERED_HERE:
            return self._bridge.answer(request)
        if self._key_limits is not None:
            access = request.access
            if access is None:  # only a preflight is admitted without a key
                return _pass_preflight(request)
            request.model = self._key_limits.begin(request, access)
        return self._forwarder.forward(request)

    def begin_shutdown(self, *, may_linger: bool) -> float:
        """Report from now on that this process will stop; see :class:`~.host.Hosted`."""
        self.is_draining = True
        self._guard.begin_shutdown()
        is_watched = self._deadlines.clock() - self._readiness_asked_at <= _WATCHED_SECONDS
        return self._grace_seconds if may_linger and is_watched else 0.0

    def reload(self) -> None:
        """Read the settings again; see :class:`~.worker.WorkersProxy`."""
        if self._config_watch is not None:
            self._config_watch.reload()

    def obey(self, url: str, *, is_draining: bool) -> None:
        """Do as an operator has said, to whichever worker; see :class:`~.worker.WorkersProxy`."""
        for backend in self._fleet.backends:
            if backend.url == url and backend.is_draining is not is_draining:
                self._fleet.set_draining(backend, is_draining=is_draining)

    def record_readiness_probe(self) -> None:
        """Record a readiness probe of this or another worker; see :class:`~.worker.WorkersProxy`."""
        self._readiness_asked_at = self._deadlines.clock()

    def _is_not_ready(self) -> bool:
        if self._context is not None and self._deadlines.clock() - self._readiness_asked_at > _TELL_SECONDS:
            self._context.announce_readiness_probe()
        self.record_readiness_probe()
        return self.is_draining

    def _finish(self, request: ProxiedRequest) -> None:
        record = request.record(self._clock())
        for subscriber in self._record_subscribers:
            subscriber(record)


async def _pass_preflight(request: ProxiedRequest) -> None:
    request.pass_preflight()  # no backend needs to see it
