"""Measured targets: this proxy, its peers, and the engines without a proxy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxies.commands import CLASSIC, ENVOY, LITELLM, OURS, SMG, VLLM_ROUTER, haproxy, nginx
from proxies.proxy import Proxy

__all__ = ["DIRECT", "OURS_NAME", "TARGETS", "Target"]

OURS_NAME, DIRECT = "inference-proxy", "direct"
_UNBOUNDED = 1_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """A target of the load. Slow targets get less load, so that a run stays short.

    Attributes:
        proxy: ``None`` for the engine itself.
        connections: most connections for requests without streaming.
        streams: most open streams at 50 tokens per second each, except in the search for the most streams.
        searched: candidate sizes for the search for the most streams, in ascending order.
        idle_streams: number of streams opened to measure the memory of a mostly idle stream.
        pace: factor for the duration of its loads, so that enough requests are counted.
        start_seconds: estimated start-up time.
    """

    name: str
    proxy: Proxy | None
    connections: int = _UNBOUNDED
    streams: int = _UNBOUNDED
    searched: tuple[int, ...] = tuple(range(125, 2501, 125))
    idle_streams: int = 5_000
    pace: float = 1.0
    start_seconds: float = 2.0

    @property
    def own_proxy(self) -> Proxy:
        """The proxy. Raises RuntimeError if the target is the engine itself."""
        if self.proxy is None:
            raise RuntimeError(f"{self.name} is no proxy")
        return self.proxy

    @property
    def is_installed(self) -> bool:
        return self.proxy is None or self.proxy.path is not None


# All defaults except one: the default limit of 4,096 concurrent requests is below the 5,000 idle streams.
_OURS = replace(OURS, settings=lambda _: {"MAX_REQUESTS_IN_FLIGHT": "20000"})

TARGETS = {
    target.name: target
    for target in (
        Target(OURS_NAME, _OURS),
        Target("vllm-router", VLLM_ROUTER),
        Target("smg", SMG),
        Target("nginx", nginx("nginx.conf")),
        Target("haproxy", haproxy("haproxy.cfg")),
        Target("envoy", ENVOY),
        Target(
            "classic",
            CLASSIC,
            connections=64,
            streams=128,
            searched=(25, 50, 75, 100, 125, 150, 200, 250, 300, 400, 500),
            idle_streams=500,
            pace=1.5,
        ),
        Target(
            "litellm",
            LITELLM,
            connections=64,
            streams=8,
            searched=(2, 4, 6, 8, 10, 15, 20, 25, 30, 40, 50),
            idle_streams=100,
            pace=2.0,
            start_seconds=12.0,
        ),
        Target(DIRECT, None),
    )
}
