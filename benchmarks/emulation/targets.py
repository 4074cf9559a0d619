"""Compared proxies: those of ``warm_prefixes``, with unlimited queues."""

from __future__ import annotations

from dataclasses import replace

from proxies.commands import OURS
from proxies.proxy import Site
from suite.targets import Target
from warm_prefixes.targets import DEFAULT_TARGETS as ALL_TARGETS
from warm_prefixes.targets import FIXED, target_named

__all__ = ["DEFAULT_TARGETS", "proxy_named"]

DEFAULT_TARGETS = tuple(name for name in ALL_TARGETS if name != FIXED.name)
_UNLIMITED = {"MAX_QUEUED_REQUESTS": "100000", "MAX_REQUESTS_IN_FLIGHT": "100000", "QUEUE_TIMEOUT_SECONDS": "3600"}
"""No request is rejected, because the other proxies let requests wait in the engines without limit."""


def proxy_named(name: str) -> Target | None:
    """The target; ``None`` if this checkout or machine does not have it.

    Raises:
        ValueError: unknown name.
    """
    if name == FIXED.name:
        raise ValueError(f"{name!r} is no proxy: try {', '.join(DEFAULT_TARGETS)}")
    target = target_named(name)
    if target is None or target.proxy is None or target.proxy.program != OURS.program:
        return target
    settings = target.proxy.settings

    def unlimited(site: Site) -> dict[str, str]:
        return settings(site) | _UNLIMITED

    return replace(target, proxy=replace(target.proxy, settings=unlimited))
