"""Balancing policies by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from simulation.policies.base import Policy, Site
from simulation.policies.cache_aware import Smg, VllmRouter
from simulation.policies.llm_d import StickyUntilSaturated
from simulation.policies.plain import LeastConnections, LeastPolled, PowerOfTwo, RandomChoice, Rendezvous, RoundRobin
from simulation.policies.project import ProjectPolicy

__all__ = ["POLICIES"]

POLICIES: dict[str, Callable[[Site], Policy]] = {
    "random": RandomChoice,
    "round_robin": RoundRobin,
    "least_polled": LeastPolled,
    "nginx": LeastConnections,
    "power_of_two": PowerOfTwo,
    "rendezvous": Rendezvous,
    "smg": Smg,
    "vllm_router": VllmRouter,
    "llm_d": StickyUntilSaturated,
    "least_requests": partial(ProjectPolicy, settings={}),
    "expected_time": partial(ProjectPolicy, settings={"balancing_policy": "expected_time"}),
}
"""This project's own policies are given by their settings."""
