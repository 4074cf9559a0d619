"""A forwarder in front of scripted engines, listening on a real socket, and its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.dispatch.attempt import Attempts
from inference_engine_proxy_server.dispatch.fair_share import FairShare
from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.heartbeats import send_heartbeat
from inference_engine_proxy_server.dispatch.leases import Dispatcher, Lease
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.queue_updates import QueueUpdates
from inference_engine_proxy_server.dispatch.request_queue import QueueLimits, RequestQueue
from inference_engine_proxy_server.dispatch.unknown_model import Explanations
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.health import HealthRules
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.fleet.listed_models import ListedModels
from inference_engine_proxy_server.models.catalog import EMPTY
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.processes.worker_fairness import SoleWorker, WorkerFairness
from inference_engine_proxy_server.requests.destinations import Destinations
from inference_engine_proxy_server.requests.path_policy import PathPolicy
from inference_engine_proxy_server.routing.affinity import AffinityTable
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.choice import Choice
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.policies import LEAST_REQUESTS
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits
from inference_engine_proxy_server.wire.origin import Origin
from support.fakes.engine import FakeEngine
from support.fakes.front import Front

READY = BackendState(ready=True, requests_processing=0.0, models=({"id": "m"},), model_names=ModelNames.STRICT)


RULES = HealthRules(evidence_seconds=6, suspect_after_seconds=60, slow_start_seconds=30)
QUEUE = QueueLimits(requests=100, seconds=30)


class Pool:
    """A fleet with its routing and dispatch, and short names for frequent calls.

    Args:
        fleet: the backends.
        queue: for requests that wait.
        policies: which policy applies to which model; ``None`` for least_requests everywhere.
        fairness: of this worker; ``None`` if it is the only one.
    """

    def __init__(
        self,
        fleet: Fleet,
        queue: RequestQueue[Lease],
        policies: ModelPolicies | None = None,
        fairness: WorkerFairness | None = None,
    ) -> None:
        self.fleet = fleet
        self.queue = queue
        self.router = PromptRouter(policies or ModelPolicies.named("least_requests", {}), 2**20, fleet.clock)
        self.placement = Placement(fleet, self.router, is_shared=fairness is not None, retry_after_seconds=3)
        self.dispatcher = Dispatcher(fleet, self.placement, queue, fairness or SoleWorker())
        self.clock = fleet.clock
        self.publish = fleet.publish
        self.replace = fleet.replace
        self.set_draining = fleet.set_draining
        self.report_silence = fleet.report_silence
        self.report_refusal = fleet.report_refusal
        self.report_refused_connection = fleet.report_refused_connection
        self.report_broken_connection = fleet.report_broken_connection
        self.report_failure = fleet.report_failure
        self.report_timeout = fleet.report_timeout
        self.report_success = fleet.report_success
        self.report_request_to_wait = fleet.report_request_to_wait
        self.lease = self.dispatcher.lease
        self.try_lease = self.dispatcher.try_lease

    @property
    def backends(self) -> tuple[Backend, ...]:
        return self.fleet.backends

    @property
    def requests_in_flight(self) -> int:
        return self.dispatcher.requests_in_flight

    def candidate(self, backend: Backend) -> Candidate:
        """The routing candidate of ``backend``."""
        return next(one for one in self.placement.candidates if one.backend is backend)

    def occupy(self, backend: Backend) -> Lease:
        """A lease on ``backend``, whether or not it would be chosen."""
        candidate = self.candidate(backend)
        return Lease(Choice(candidate, LEAST_REQUESTS, [candidate]), self.dispatcher)


def make_pool(
    engines: Iterable[FakeEngine | str],
    deadlines: Deadlines,
    *,
    rules: HealthRules = RULES,
    queue: QueueLimits = QUEUE,
    allowance: int = 0,
    policy: str = "least_requests",
    by_model: Mapping[str, str] | None = None,
    **limits: float,
) -> Pool:
    """A pool of ``engines`` (or base URLs) that have not reported yet; ``limits`` as in ``BackendLimits``."""
    usual = {"connect_seconds": 1.0, "first_byte_seconds": 5.0, "pause_seconds": 5.0, "idle_seconds": 3.0}
    backend_limits = BackendLimits(**(usual | limits))
    backends = [
        Backend(
            BackendConfig(url, url.partition("://")[2]),
            BackendConnections(Origin.of(url), backend_limits, deadlines),
            HealthTracker(rules, deadlines.clock()),
            BackendLoad(),
        )
        for url in (engine if isinstance(engine, str) else engine.url for engine in engines)
    ]
    fleet = Fleet(backends, rules.evidence_seconds / 2, allowance, deadlines.clock)
    policies = ModelPolicies.named(policy, {name: ModelConfig(own) for name, own in (by_model or {}).items()})
    return Pool(fleet, RequestQueue[Lease](queue, deadlines), policies)


def publish(pool: Pool, state: BackendState = READY) -> None:
    """Let every backend of ``pool`` report ``state``."""
    for backend in pool.backends:
        pool.publish(backend, state, own_at_poll=backend.load.leases, asked_at=pool.clock())


def make_forwarder(pool: Pool, *, first_token_seconds: float = 0.0) -> Forwarder:
    """A forwarder with the default options, except that it honours ``x-priority``."""
    metrics = RequestMetrics()
    attempts = Attempts(
        pool.dispatcher,
        metrics,
        names_backend=True,
        keeps_credentials=True,
        retry_statuses=Settings().retry_statuses,
        first_token_seconds=first_token_seconds,
    )
    fair_share = FairShare(takes_priority_header=True)
    updates = QueueUpdates(pool.queue, to_all=False)
    affinities = AffinityTable(lambda: pool.backends)
    decisions = Decisions(answers_header=False)
    explanations = Explanations(ListedModels(pool.fleet, LiveCatalog(EMPTY), pool.placement.lists))
    return Forwarder(
        pool.dispatcher, decisions, metrics, Journal(), fair_share, updates, attempts, affinities, explanations
    )


def requests_under_budget(forwarder: Forwarder) -> int:
    """Number of repeated requests that the retry budget counts as in flight."""
    return forwarder._attempts.budget._under_way  # noqa: SLF001 - every test must leave 0


class ForwardingFront(Front):
    """A front whose requests go to ``engines``, which are ready at first; ``options`` as in :func:`make_pool`.

    ``heartbeat_seconds``: after which a client that waits for its stream gets a comment.

    Attributes:
        pool: of the engines, in their order.
    """

    def __init__(self, *engines: FakeEngine | str, heartbeat_seconds: float = NEVER, **options: Any) -> None:
        destinations = Destinations((), PathPolicy(Settings().blocked_paths).blocks)
        super().__init__(
            lambda request: self.forwarder.forward(request),
            classify=lambda head: destinations.of(head.method, head.path, head.passed_on),
            new_exchange=ProxiedRequest,
            heartbeat_seconds=heartbeat_seconds,
            send_heartbeat=send_heartbeat,
        )
        self.pool = make_pool(engines, self._deadlines, **options)
        publish(self.pool)
        self.forwarder = make_forwarder(self.pool)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        for backend in self.pool.backends:
            backend.connections.close()

    @property
    def budget_under_way(self) -> int:
        """Number of repeated requests that have not been released from the budget."""
        return requests_under_budget(self.forwarder)

    async def post(self, body: bytes = b'{"model": "m"}', path: str = "/v1/chat/completions") -> bytes:
        """Send a POST; returns everything received until the connection ends."""
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        return await self.send(head.encode() + body)

    async def send(self, request: bytes) -> bytes:
        """Send ``request``; returns everything received until the connection ends."""
        client = await self.connect()
        client.send(request)
        return await client.rest()
