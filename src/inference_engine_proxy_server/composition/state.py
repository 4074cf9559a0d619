"""Builds the connection to the state that replicas share. Without STATE_URL, its package is not imported."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.processes.process_context import Loops, ProcessContext
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.usage.spending import Spending

if TYPE_CHECKING:
    from inference_engine_proxy_server.access.shared_limits import SharedLimits
    from inference_engine_proxy_server.state.broadcast import Broadcast
    from inference_engine_proxy_server.state.shared_state import SharedState
    from inference_engine_proxy_server.usage.shared_spending import SharedSpending

__all__ = ["Sharing", "build_sharing"]


@dataclass(frozen=True, slots=True)
class Sharing:
    """What several replicas share state by.

    Attributes:
        state: the connection.
        broadcast: messages to all members.
        limits: of keys.
        spending: the tokens that keys have used of their budgets.
    """

    state: SharedState
    broadcast: Broadcast
    limits: SharedLimits
    spending: SharedSpending

    @property
    def loops(self) -> Loops:
        """Background tasks."""
        return {
            "shared state": self.state.run,
            "shared state messages": self.broadcast.run,
            "shared limits": self.limits.run,
            "shared budgets": self.spending.run,
        }

    def described(self) -> dict[str, Any]:
        """For ``/health``: whether the server answers, since when that is so, and who shares the state."""
        state = self.state
        return {
            "available": state.is_available,
            "since": state.since,
            "replicas": state.replicas,
            "members": len(state.members),
        }


def build_sharing(
    settings: Settings,
    process: ProcessContext,
    metrics: RequestMetrics,
    spending: Spending,
    clock: Callable[[], float],
) -> Sharing | None:
    """The shared state; ``None`` without STATE_URL."""
    if settings.state_url is None:
        return None
    from inference_engine_proxy_server.access.shared_limits import SharedLimits
    from inference_engine_proxy_server.state.broadcast import Broadcast
    from inference_engine_proxy_server.state.redis_client import make_client
    from inference_engine_proxy_server.state.shared_state import SharedState
    from inference_engine_proxy_server.usage.shared_spending import SharedSpending

    # The name of the service itself is for engines only.
    replica = hashlib.sha256(process.service.encode()).hexdigest()[:12]
    member = f"{replica}.{process.siblings.number}.{secrets.token_hex(4)}"
    state = SharedState(make_client(settings.state_url), str(settings.state_url), settings.state_prefix, member)
    metrics.add_gauge(
        "shared_state_available",
        "1 if the server of STATE_URL answers this process.",
        lambda: float(state.is_available),
    )
    metrics.add_gauge(
        "shared_state_members", "Processes of all replicas that share the state.", lambda: float(len(state.members))
    )
    metrics.add_counter(
        "shared_state_failures",
        "How often the server of STATE_URL stopped answering.",
        lambda: float(state.failures),
    )
    return Sharing(
        state, Broadcast(state), SharedLimits(state, settings.workers, clock), SharedSpending(state, spending)
    )
