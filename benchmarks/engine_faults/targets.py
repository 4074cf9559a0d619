"""The compared proxies, each configured for fault tolerance as its documentation recommends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from proxies.commands import OURS, SMG, VLLM_ROUTER, haproxy, nginx, router_arguments
from proxies.process import is_answering, spawned
from proxies.proxy import Proxy, Site

__all__ = ["TARGETS", "Target", "started"]

_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """A proxy under test.

    Attributes:
        settle_seconds: from its first answer until its view of all engines is stable.
    """

    proxy: Proxy
    settle_seconds: float = 1.0

    @property
    def is_installed(self) -> bool:
        return self.proxy.path is not None


TARGETS = {
    "inference-proxy": Target(OURS),
    "haproxy-tuned": Target(haproxy("haproxy-faults.cfg")),
    "nginx-nonidem": Target(nginx("nginx-faults.conf")),
    "vllm-router": Target(replace(VLLM_ROUTER, arguments=router_arguments)),
    # It polls loads every 10 s; engines missed by the first poll get no traffic, or all of it, until the next poll.
    "smg": Target(replace(SMG, arguments=lambda site: ["launch", *router_arguments(site)]), settle_seconds=12.0),
}


@contextlib.asynccontextmanager
async def started(target: Target, site: Site) -> AsyncIterator[None]:
    """Start the proxy, and wait until it has answered a request.

    Raises:
        RuntimeError: the proxy did not start; the message contains the end of its log.
    """
    with spawned(target.proxy, site) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not await asyncio.to_thread(is_answering, site.port):  # so that Ctrl-C works meanwhile
            if process.has_ended or time.monotonic() > deadline:
                raise RuntimeError(f"did not start: {process.log_end}")
            await asyncio.sleep(0.1)
        await asyncio.sleep(target.settle_seconds)
        yield
