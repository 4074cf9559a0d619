"""What every endpoint that shows a backend tells of it, in the same words."""

from __future__ import annotations

import time
from typing import Any

from inference_engine_proxy_server.fleet.backend import Backend

__all__ = ["facts_of"]


def facts_of(backend: Backend, now: float) -> dict[str, Any]:
    """How ``backend`` is, and what of ours, of all workers, it has; ``now``: reading of the clock."""
    health = backend.health
    return {
        "state": health.state.value,
        "reason": health.reason,
        "since": time.time() - (now - health.since),
        "draining": backend.is_draining,
        "requests_in_flight": backend.all_leases,
        "models": sorted(backend.model_ids),
        "contexts": backend.contexts,
    }
