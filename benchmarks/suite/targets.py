"""What is measured: this proxy, its peers, and the engines without any proxy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxies.commands import CLASSIC, ENVOY, LITELLM, OURS, SMG, VLLM_ROUTER, haproxy, nginx
from proxies.proxy import Proxy

__all__ = ["DIRECT", "OURS_NAME", "TARGETS", "Target"]

OURS_NAME, DIRECT = "inference-proxy", "direct"
_UNBOUNDED = 1_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """What load is sent to; slow ones get less, that a run of all of them stays short.

    Attributes:
        proxy: ``None``: the engine itself.
        connections: most with which it gets plain requests.
        streams: most open ones at 50 tokens a second each, for every step but the search for the most.
        searched: numbers of streams among which the most that it can carry is searched, in rising order.
        idle_streams: how many are opened to weigh one that hardly ever has an event.
        pace: its loads take this many times as long, that enough of its requests are counted.
        start_seconds: about how long it takes to start.
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
        """Raises RuntimeError where it is the engine itself."""
        if self.proxy is None:
            raise RuntimeError(f"{self.name} is no proxy")
        return self.proxy

    @property
    def is_installed(self) -> bool:
        return self.proxy is None or self.proxy.path is not None


# With every default but one, as its peers have it: 4,096 requests at a time are fewer than the 5,000 idle streams.
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
