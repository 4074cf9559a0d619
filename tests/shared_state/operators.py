"""Several real proxies that share state, as operators see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from end_to_end.test_joining import SETTINGS, ask
from support.program import Proxy, program
from support.redis_server import RedisServer
from support.running_proxy import Addressed
from support.waiting import eventually

__all__ = ["Replicas", "command", "is_drained", "replicas", "row", "shares"]


class Replicas:
    """Starts replicas in front of the same backends, which end with the test.

    Args:
        folder: their working directories are in it.
        server: has the state that they share.
        backends: of each.
    """

    def __init__(self, stack: AsyncExitStack, folder: Path, server: RedisServer, *backends: Addressed) -> None:
        self._stack = stack
        self._folder = folder
        self._server = server
        self._backends = backends
        self._count = 0

    async def start(self, **settings: str) -> Proxy:
        """One more replica."""
        self._count += 1
        usual = {"METRICS_CACHE_TTL_SECONDS": "1", "STATE_URL": self._server.url}
        folder = self._folder / f"replica{self._count}"
        return await self._stack.enter_async_context(program(folder, *self._backends, **SETTINGS | usual | settings))

    async def start_some(self, count: int, **settings: str) -> list[Proxy]:
        """Several replicas that know each other."""
        started = [await self.start(**settings) for _ in range(count)]
        for one in started:
            await eventually(lambda one=one: shares(one, count))  # type: ignore[misc]
        return started


@asynccontextmanager
async def replicas(folder: Path, server: RedisServer, *backends: Addressed) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        yield Replicas(stack, folder, server, *backends)


async def shares(proxy: Proxy, count: int) -> bool:
    """Whether ``proxy`` shares state with ``count`` replicas, itself included, all of which answer."""
    state = (await proxy.health())["shared_state"]
    silent = (await ask(proxy, "/backends")).json["silent_replicas"]
    return bool(state["available"]) and state["replicas"] == count and not silent


async def row(proxy: Proxy, backend: Addressed) -> dict[str, Any]:
    """The backend as operators see it."""
    rows = (await ask(proxy, "/backends")).json["backends"]
    return next(one for one in rows if one["url"] == backend.url)


async def command(proxy: Proxy, backend: Addressed, verb: str = "drain", query: str = "") -> dict[str, Any]:
    """Drain or undrain ``backend``."""
    reply = await ask(proxy, f"/backends/{backend.url}/{verb}{query}", b"")
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = reply.json
    return answer


def is_drained(proxy: Proxy, backend: Addressed, *, expected: bool = True) -> Callable[[], Any]:
    """A condition: whether ``backend`` is drained in ``proxy``, or is not."""

    async def check() -> bool:
        return (await row(proxy, backend))["draining"] is expected

    return check
