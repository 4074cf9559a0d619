"""Builds the path of a request to a backend: placement, leases, the queue and the forwarder."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from inference_engine_proxy_server.access.key_limits import KeyLimits
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.composition.access import forwards_keys
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.dispatch.assembling_forwarder import AssemblingForwarder
from inference_engine_proxy_server.dispatch.attempt import Attempts
from inference_engine_proxy_server.dispatch.counted_attempts import CountedAttempts
from inference_engine_proxy_server.dispatch.fair_share import FairShare
from inference_engine_proxy_server.dispatch.fallback_forwarder import FallbackForwarder
from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.dispatch.limited_forwarder import LimitedForwarder
from inference_engine_proxy_server.dispatch.ownership import Ownership
from inference_engine_proxy_server.dispatch.queue_updates import QueueUpdates
from inference_engine_proxy_server.dispatch.renaming_forwarder import RenamingForwarder
from inference_engine_proxy_server.dispatch.request_queue import QueueLimits, RequestQueue
from inference_engine_proxy_server.dispatch.resuming_forwarder import ResumingForwarder
from inference_engine_proxy_server.dispatch.stream_relay import StreamRelay
from inference_engine_proxy_server.dispatch.unknown_model import Explanations
from inference_engine_proxy_server.dispatch.websocket_attempts import WebSocketAttempts
from inference_engine_proxy_server.dispatch.websocket_forwarder import WebSocketForwarder
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.listed_models import ListedModels
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.routing.conversations import Conversations
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.policies import POLICIES
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.routing.shadow import Shadow
from inference_engine_proxy_server.routing.watched_placement import WatchedPlacement
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.usage.ledger import Ledger

__all__ = ["build_dispatcher", "build_forwarder", "build_placement", "build_websocket_forwarder"]


def build_placement(
    configuration: Configuration, fleet: Fleet, process: ProcessContext, catalog: LiveCatalog
) -> Placement:
    """The placement among the backends of ``fleet``. It records decisions if operators or clients can read them."""
    settings = configuration.settings
    policies = ModelPolicies.named(settings.balancing_policy, configuration.models)
    make_placement: Callable[..., Placement] = Placement
    if settings.shadow_policy is not None:
        make_placement = partial(WatchedPlacement, _shadow(settings, settings.shadow_policy, fleet, catalog))
    return make_placement(
        fleet,
        PromptRouter(policies, settings.prefix_index_bytes, fleet.clock),
        Conversations(process.conversations),
        is_shared=process.is_worker,
        records_decisions=settings.explain_header or settings.admin_key is not None,
        default_model=catalog.now.default_model,
        tier_penalty_seconds=settings.tier_penalty_seconds,
        retry_after_seconds=max(1, math.ceil(settings.metrics_cache_ttl_seconds)),
    )


def _shadow(settings: Settings, policy: str, fleet: Fleet, catalog: LiveCatalog) -> Shadow:
    return Shadow(
        fleet,
        POLICIES[policy],
        settings.prefix_index_bytes,
        default_model=catalog.now.default_model,
        tier_penalty_seconds=settings.tier_penalty_seconds,
    )


def build_dispatcher(
    settings: Settings, fleet: Fleet, placement: Placement, deadlines: Deadlines, process: ProcessContext
) -> Dispatcher:
    """The dispatcher, which grants leases on the backends of ``fleet``."""
    limits = QueueLimits(settings.max_queued_requests, settings.queue_timeout_seconds)
    return Dispatcher(fleet, placement, RequestQueue(limits, deadlines), process.fairness())


def build_forwarder(
    settings: Settings,
    dispatcher: Dispatcher,
    decisions: Decisions,
    metrics: RequestMetrics,
    journal: Journal,
    ring: KeyRing | None,
    ownership: Ownership,
    catalog: LiveCatalog,
    listed: ListedModels,
    ledger: Ledger | None,
) -> RenamingForwarder | LimitedForwarder:
    """The forwarder, which enforces the limits of keys if there are any, and counts requests if there is a ledger."""
    make_attempts = Attempts if ledger is None else partial(CountedAttempts, ledger)
    attempts = make_attempts(
        dispatcher,
        metrics,
        names_backend=settings.backend_header,
        keeps_credentials=forwards_keys(settings),
        retry_statuses=settings.retry_statuses,
        first_token_seconds=settings.first_token_timeout_seconds,
    )
    fair_share = FairShare(takes_priority_header=settings.priority_header)
    updates = QueueUpdates(dispatcher.queue, to_all=settings.queue_updates)
    forwarder: Forwarder | ResumingForwarder
    forwarder = Forwarder(
        dispatcher, decisions, metrics, journal, fair_share, updates, attempts, ownership.table, Explanations(listed)
    )
    if settings.stream_resume != "off" or settings.assemble_replies:
        forwarder = _resuming(settings, forwarder, dispatcher.fleet, metrics, journal)
    return _by_name(forwarder, dispatcher, metrics, journal, catalog, ring, ownership)


def _resuming(
    settings: Settings, forwarder: Forwarder, fleet: Fleet, metrics: RequestMetrics, journal: Journal
) -> ResumingForwarder:
    relay = StreamRelay(
        forwarder,
        fleet,
        metrics,
        journal,
        resumes=settings.stream_resume,
        sends_comments=settings.stream_resume_comments,
    )
    assembling = AssemblingForwarder(forwarder, relay, fleet, metrics) if settings.assemble_replies else None
    return ResumingForwarder(forwarder, relay, assembling, fleet, metrics)


def build_websocket_forwarder(
    settings: Settings,
    dispatcher: Dispatcher,
    decisions: Decisions,
    metrics: RequestMetrics,
    journal: Journal,
    ring: KeyRing | None,
    ownership: Ownership,
    catalog: LiveCatalog,
    listed: ListedModels,
    deadlines: Deadlines,
) -> RenamingForwarder | LimitedForwarder:
    """The forwarder of WebSockets, which enforces the limits of keys if there are any."""
    attempts = WebSocketAttempts(
        dispatcher,
        metrics,
        names_backend=settings.backend_header,
        keeps_credentials=forwards_keys(settings),
        retry_statuses=settings.retry_statuses,
        deadlines=deadlines,
        idle_seconds=settings.websocket_idle_timeout_seconds or NEVER,
    )
    fair_share = FairShare(takes_priority_header=settings.priority_header)
    updates = QueueUpdates(dispatcher.queue, to_all=False)  # before the switch, the client can get nothing
    forwarder = WebSocketForwarder(
        dispatcher, decisions, metrics, journal, fair_share, updates, attempts, ownership.table, Explanations(listed)
    )
    return _by_name(forwarder, dispatcher, metrics, journal, catalog, ring, ownership)


def _by_name(
    forwarder: Forwarder | ResumingForwarder,
    dispatcher: Dispatcher,
    metrics: RequestMetrics,
    journal: Journal,
    catalog: LiveCatalog,
    ring: KeyRing | None,
    ownership: Ownership,
) -> RenamingForwarder | LimitedForwarder:
    """``forwarder`` behind the names of models and the limits of keys."""
    is_served = dispatcher.placement.lists
    fallbacks = FallbackForwarder(forwarder.forward, metrics, journal)
    renaming = RenamingForwarder(catalog, is_served, forwarder.forward, fallbacks)
    if ring is None:
        return renaming
    return LimitedForwarder(KeyLimits(dispatcher.fleet.clock, catalog, is_served), ownership, renaming)
