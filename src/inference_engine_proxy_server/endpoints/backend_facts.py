"""The description of a backend that several endpoints share."""

from __future__ import annotations

from typing import Any

from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot

__all__ = ["facts_of"]


def facts_of(backend: BackendSnapshot) -> dict[str, Any]:
    """The state of ``backend``, its requests from all workers, and its models."""
    return {
        "state": backend.state.value,
        "reason": backend.reason,
        "since": backend.since,
        "draining": backend.is_draining,
        "requests_in_flight": backend.requests_in_flight,
        "models": sorted(backend.serving.model_ids),
        "contexts": backend.serving.contexts,
    }
