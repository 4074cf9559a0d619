"""Compared targets: this proxy with each of its policies, its peers, and clients that choose a fixed engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from proxies.commands import OURS, SMG, VLLM_ROUTER, nginx, router_arguments
from proxies.proxy import Proxy, Site
from suite.targets import Target

__all__ = ["DEFAULT_TARGETS", "FIXED", "target_named"]

_POLICY_SETTING = "BALANCING_POLICY"
_OUR_PREFIX = "inference-proxy/"
_OUR_POLICIES = ("least_requests", "expected_time")
FIXED = Target("fixed", None)
"""No proxy: each group has its own engine, and uses the next one only while that engine is gone."""


def _cache_aware(*command: str) -> Callable[[Site], list[str]]:
    return lambda site: [*command, *router_arguments(site, "cache_aware"), "--log-level", "error"]


_PEERS = {
    target.name: target
    for target in (
        Target("smg", replace(SMG, arguments=_cache_aware("launch"))),
        Target("vllm-router", replace(VLLM_ROUTER, arguments=_cache_aware())),
        Target("nginx", nginx("nginx.conf")),
        FIXED,
    )
}
DEFAULT_TARGETS = (*(f"{_OUR_PREFIX}{policy}" for policy in _OUR_POLICIES), *_PEERS)


def target_named(name: str) -> Target | None:
    """The target ``inference-proxy/POLICY`` or a peer; ``None`` if this checkout or machine does not have it.

    Raises:
        ValueError: unknown name.
    """
    if not name.startswith(_OUR_PREFIX):
        if name not in _PEERS:
            raise ValueError(f"{name!r} is neither {_OUR_PREFIX}POLICY nor one of {', '.join(_PEERS)}")
        return _PEERS[name] if _PEERS[name].is_installed else None
    ours = _ours(name.removeprefix(_OUR_PREFIX))
    return None if ours is None else Target(name, ours)


def _ours(policy: str) -> Proxy | None:
    """``None`` for a checkout without this policy, which would silently ignore the setting."""
    settings = [sys.executable, "-m", "inference_engine_proxy_server", "settings"]
    done = subprocess.run(settings, capture_output=True, text=True, check=False, timeout=60)
    if any(line.split()[:1] == [_POLICY_SETTING] for line in done.stdout.splitlines()):
        return replace(OURS, settings=lambda _: {_POLICY_SETTING: policy})
    return OURS if policy == "least_requests" else None
