"""Which backends may get a request, by what the request requires and what the backends accept. Pure."""

from __future__ import annotations

import math

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.requirements import Requirements

__all__ = ["is_for_all", "is_open", "rank_of"]


def is_for_all(requirements: Requirements) -> bool:
    """Whether the request may go to backends of every model: it names none, and its path or resource decides."""
    affinity = requirements.affinity
    return requirements.model is None and (
        bool(requirements.lacking) or (affinity is not None and affinity.is_required)
    )


def is_open(backend: Backend, requirements: Requirements) -> bool:
    """Whether a live backend takes the request unless it is full. A required home does, even while draining."""
    if requirements.affinity is None or not requirements.affinity.is_required:
        return backend.takes_requests
    return (
        not requirements.needs_slot or backend.takes_requests or (backend.is_draining and backend.health.takes_requests)
    )


def rank_of(candidate: Candidate, requirements: Requirements) -> float:
    """The rank of ``candidate`` by its load; infinite if it does not take the request now."""
    takes_it = is_open(candidate.backend, requirements) and (
        candidate.has_slot if requirements.needs_slot else candidate.is_admitted
    )
    return candidate.rank() if takes_it else math.inf
