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
)
from inference_engine_proxy_server.config.settings import Settings
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
from inference_engine_proxy_server.processes.worker import Post
from inference_engine_proxy_server.processes.worker_fairness import SoleWorker, WorkerFairness
from inference_engine_proxy_server.requests.destinations import ANSWERED_HERE, Destinations
from inference_engine_proxy_server.requests.path_policy import PathPolicy
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.tasks.keep_running import keep_running
from inference_engine_proxy_server.telemetry.logs import AccessLog
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.client_connection import ClientConnection
from inference_engine_proxy_server.wire.exchange import Exchange, Outcome
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

    def __init__(self, settings: Settings, load: Callable[[], Settings] | None, post: Post | None = None) -> None:
        self.is_draining = False
        self._post = post
        self._grace_seconds = settings.drain_grace_seconds
        self._readiness_asked_at = -math.inf
        self._deadlines = Deadlines()
        self._metrics = RequestMetrics()
        self._load = client_load(settings, self._deadlines)
        self._guard = overload_guard(settings, self._load, self._metrics, self._deadlines)
        self._access_log = None
        if settings.access_log:
            self._access_log = AccessLog(sys.stdout, settings.log_format, is_shared=post is not None)
        engines = discover_engines()
        check_engines(settings.fleet, engines)
        make_backend = backend_maker(settings, self._deadlines, post)
        fairness = SoleWorker() if post is None else WorkerFairness(post.board, post.siblings.number)
        self._fleet = fleet(settings, map(make_backend, settings.fleet), self._deadlines)
        routing = placement(settings, self._fleet, is_shared=post is not None)
        self._dispatcher = dispatcher(settings, self._fleet, routing, self._deadlines, fairness)
        recorded = decisions(settings)
        for url in () if post is None else post.drained:
            self.obey(url, is_draining=True)
        self._refresher = cache_refresher(settings, self._fleet, engines)
        self._config_watch = None
        if load is not None:
            keeper = FleetUpdater(
                self._fleet,
                engines,
                make_backend,
                self._refresher.forget_engine,
                lambda models: routing.set_policies(ModelPolicies.named(settings.balancing_policy, models)),
                settings.models,
            )
            self._config_watch = ConfigWatch(settings, load, keeper, self._metrics, hears_signals=post is None)
        self._key_ring = key_ring(settings)
        self._key_limits = None if self._key_ring is None else KeyLimits(self._deadlines.clock)
        self._forwarder = forwarder(settings, self._dispatcher, recorded, self._metrics)
        allowances = Allowances(self._deadlines.clock)
        siblings, order = (Siblings(), None) if post is None else (post.siblings, post.order)
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
            self._deadlines,
            self._load,
            destinations.of,
            self._guard.shed,
            doorkeeper.admit,
            self._handle,
            self._observe,
        )
        self._operators = replace(
            self._clients,
            admit=doorkeeper.admit_operator,
            handle=self._bridge.answer,
            load=Load(self._deadlines.clock),  # without bounds
        )

    def accept(self, server_state: Any, **_: object) -> ClientConnection:
        """A protocol for a connection that uvicorn has accepted."""
        return ClientConnection(self._clients, server_state.connections, server_state.tasks)

    def accept_operator(self, server_state: Any) -> ClientConnection:
        """The same for one on ADMIN_PORT."""
        return ClientConnection(self._operators, server_state.connections, server_state.tasks)

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        loops = {
            "deadlines": self._deadlines.run,
            "overload guard": self._guard.run,
            "cache refresher": self._refresher.run,
        }
        if self._post is not None:
            loops["siblings"] = partial(self._post.siblings.answer, self._post.inbox, self._answers)
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

    def _handle(self, exchange: Exchange) -> Coroutine[None, None, None]:
        if exchange.head.destination in ANSWERED_HERE:
            return self._bridge.answer(exchange)
        if self._key_limits is not None:
            if exchange.head.access is None:  # only a browser's preflight comes here without a key
                return _pass_preflight(exchange)
            self._key_limits.begin(exchange)
        return self._forwarder.forward(exchange)

    def drain(self, *, may_linger: bool) -> float:
        """Say that this process will stop; see :class:`~.host.Hosted`."""
        self.is_draining = True
        self._guard.drain()
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

    def note_watched(self) -> None:
        """Somebody asks whether we are ready, here or elsewhere; see :class:`~.worker.WorkersProxy`."""
        self._readiness_asked_at = self._deadlines.clock()

    def _is_not_ready(self) -> bool:
        if self._post is not None and self._deadlines.clock() - self._readiness_asked_at > _TELL_SECONDS:
            self._post.say_watched()
        self.note_watched()
        return self.is_draining

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
                outcome=exchange.outcome,
                backend=exchange.backend,
                model=exchange.model,
                first_byte_seconds=first_byte_seconds,
                seconds=seconds,
                sent_bytes=exchange.sent_bytes,
                request_id=exchange.request_id,
            )


async def _pass_preflight(exchange: Exchange) -> None:
    exchange.pass_preflight()  # no engine needs to see it
