"""The description of a backend that the dashboard and several endpoints share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inference_engine_proxy_server.fleet.difference import Aspect
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot, FleetSnapshot, ModelSnapshot

__all__ = ["differences_of", "facts_of"]


def facts_of(backend: BackendSnapshot) -> dict[str, Any]:
    """The engine of ``backend``, its state, its requests from all workers, and its models."""
    return {
        "engine": backend.engine,
        "state": backend.state.value,
        "reason": backend.reason,
        "since": backend.since,
        "draining": backend.is_draining,
        "requests_in_flight": backend.requests_in_flight,
        "models": sorted(backend.serving.model_ids),
        "contexts": backend.serving.contexts,
        **_taking_turns(backend),
    }


def differences_of(fleet: FleetSnapshot, names: Mapping[str, str], *, with_versions: bool) -> list[dict[str, Any]]:
    """The differences between replicas.

    Args:
        fleet: the fleet.
        names: of its backends, by URL.
        with_versions: include versions of engines, which help attackers.
    """
    return [one.as_json(names) for one in fleet.differences if with_versions or one.aspect is not Aspect.VERSION]


def _taking_turns(backend: BackendSnapshot) -> dict[str, Any]:
    """What only a backend has that loads and unloads its models."""
    if backend.models is None:
        return {}
    return {
        "most_loaded_models": _finite(backend.most_models),
        "model_states": {name: _state_of(model) for name, model in backend.models.items()},
    }


def _state_of(model: ModelSnapshot) -> dict[str, Any]:
    return {
        "status": model.status,
        "in_memory": model.in_memory,
        "requests": model.requests,
        "waiting": model.waiting,
        "limit": _finite(model.limit),
    }


def _finite(number: float) -> float | None:
    return number if number < math.inf else None
