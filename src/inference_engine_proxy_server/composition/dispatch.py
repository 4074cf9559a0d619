"""Builds the path of a request to a backend: placement, leases, the queue and the forwarder."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

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
from inference_engine_proxy_server.dispatch.locating_forwarder import LocatingForwarder
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

__all__ = ["ForwarderParts", "build_dispatcher", "build_forwarder", "build_placement", "build_websocket_forwarder"]

_AnyForwarder = TypeVar("_AnyForwarder", bound=Forwarder)


class ForwarderParts(NamedTuple):
    """What the forwarders of requests and of WebSockets have in common.

    Attributes:
        ring: the API keys; ``None`` when clients need none.
    """

    settings: Settings
    dispatcher: Dispatcher
    decisions: Decisions
    metrics: RequestMetrics
    journal: Journal
    ring: KeyRing | None
    ownership: Ownership
    catalog: LiveCatalog
    listed: ListedModels


def build_placement(
    configuration: Configuration,
    fleet: Fleet,
    process: ProcessContext,
    catalog: LiveCatalog,
    conversations: Conversations | None = None,
) -> Placement:
    """The placement among the backends of ``fleet``. It records decisions if operators or clients can read them.

    Args:
        configuration: has the policies.
        fleet: the backends.
        process: one of the workers, or the only one.
        catalog: the names of models.
        conversations: which backend served each conversation last; ``None`` for those of this proxy alone.
    """
    settings = configuration.settings
    policies = ModelPolicies.named(settings.balancing_policy, configuration.models)
    make_placement: Callable[..., Placement] = Placement
    if settings.shadow_policy is not None:
        make_placement = partial(WatchedPlacement, _shadow(settings, settings.shadow_policy, fleet, catalog))
    return make_placement(
        fleet,
        PromptRouter(policies, settings.prefix_index_bytes, fleet.clock),
        conversations or Conversations(process.conversations),
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


def build_forwarder(parts: ForwarderParts, ledger: Ledger | None) -> RenamingForwarder | LimitedForwarder:
    """The forwarder, which enforces the limits of keys if there are any, and counts requests if there is a ledger."""
    settings = parts.settings
    make_attempts = Attempts if ledger is None else partial(CountedAttempts, ledger)
    attempts = make_attempts(
        parts.dispatcher,
        parts.metrics,
        names_backend=settings.backend_header,
        keeps_credentials=forwards_keys(settings),
        retry_statuses=settings.retry_statuses,
        first_token_seconds=settings.first_token_timeout_seconds,
    )
    forwarder: Forwarder | ResumingForwarder
    forwarder = _forwarder(Forwarder, parts, attempts, updates_all=settings.queue_updates)
    if settings.stream_resume != "off" or settings.assemble_replies:
        forwarder = _resuming(parts, forwarder)
    return _by_name(parts, forwarder)


def build_websocket_forwarder(parts: ForwarderParts, deadlines: Deadlines) -> RenamingForwarder | LimitedForwarder:
    """The forwarder of WebSockets, which enforces the limits of keys if there are any."""
    settings = parts.settings
    attempts = WebSocketAttempts(
        parts.dispatcher,
        parts.metrics,
        names_backend=settings.backend_header,
        keeps_credentials=forwards_keys(settings),
        retry_statuses=settings.retry_statuses,
        deadlines=deadlines,
        idle_seconds=settings.websocket_idle_timeout_seconds or NEVER,
    )
    # Before the switch, the client can get no updates.
    return _by_name(parts, _forwarder(WebSocketForwarder, parts, attempts, updates_all=False))


def _forwarder(
    kind: type[_AnyForwarder], parts: ForwarderParts, attempts: Attempts, *, updates_all: bool
) -> _AnyForwarder:
    """A forwarder of this kind, which tries backends by ``attempts``."""
    return kind(
        parts.dispatcher,
        parts.decisions,
        parts.metrics,
        parts.journal,
        FairShare(takes_priority_header=parts.settings.priority_header),
        QueueUpdates(parts.dispatcher.queue, to_all=updates_all),
        attempts,
        parts.ownership.table,
        Explanations(parts.listed),
    )


def _resuming(parts: ForwarderParts, forwarder: Forwarder) -> ResumingForwarder:
    settings, fleet, metrics = parts.settings, parts.dispatcher.fleet, parts.metrics
    relay = StreamRelay(
        forwarder,
        fleet,
        metrics,
        parts.journal,
        resumes=settings.stream_resume,
        sends_comments=settings.stream_resume_comments,
    )
    assembling = AssemblingForwarder(forwarder, relay, fleet, metrics) if settings.assemble_replies else None
    return ResumingForwarder(forwarder, relay, assembling, fleet, metrics)


def _by_name(parts: ForwarderParts, forwarder: Forwarder | ResumingForwarder) -> RenamingForwarder | LimitedForwarder:
    """``forwarder`` behind the names of models and the limits of keys."""
    is_served = parts.dispatcher.placement.lists
    forward, table = forwarder.forward, parts.ownership.table
    if table.is_shared and parts.ring is None:  # with keys, the check of owners asks
        forward = LocatingForwarder(table, forward).forward
    fallbacks = FallbackForwarder(forward, parts.metrics, parts.journal)
    renaming = RenamingForwarder(parts.catalog, is_served, forward, fallbacks)
    if parts.ring is None:
        return renaming
    limits = KeyLimits(parts.dispatcher.fleet.clock, parts.catalog, is_served)
    return LimitedForwarder(limits, parts.ownership, renaming)
