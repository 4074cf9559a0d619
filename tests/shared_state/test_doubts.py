"""What one replica finds out about a backend helps the others, and cannot harm them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from shared_state.operators import replicas
from support.engine import Engine, answers_with, fails_with
from support.fakes.engine import EngineConnection, http_reply
from support.program import Proxy
from support.redis_server import RedisServer
from support.waiting import eventually

RARE_POLLS = {"METRICS_CACHE_TTL_SECONDS": "600"}


async def test_a_backend_that_one_replica_finds_dead_is_polled_at_once_by_all(
    tmp_path: Path, server: RedisServer
) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, engine, other) as some:
            first, second, third = await some.start_some(3, **RARE_POLLS)
            await engine.stop()
            for _ in range(4):
                assert (await first.post()).status == 200
            for proxy in (first, second, third):
                await proxy.becomes(engine, "down")  # not by their own polls, which come every ten minutes


async def test_a_backend_that_fails_requests_at_one_replica_needs_one_failure_to_be_suspended_at_another(
    tmp_path: Path, server: RedisServer
) -> None:
    async with Engine(fails_with(500)) as engine, Engine(answers_with(http_reply())) as other:
        async with (
            Engine(answers_with(http_reply())) as third,
            replicas(tmp_path, server, engine, other, third) as some,
        ):
            first, second = await some.start_some(2)
            polls = engine.count("/metrics")
            while await first.state(engine) != "suspect":
                await first.post()
            assert await second.state(engine) == "up"
            await eventually(lambda: engine.count("/metrics") > polls)

            failed = len(engine.served)
            while await second.state(engine) != "suspect":
                assert (await second.post()).status == 200
            assert len(engine.served) <= failed + 2  # one of them may be the trial of the first replica


class GuardedEngine(Engine):
    """Breaks the connections of the replica with ``key`` while it ``is_shut``, as if the network between them were."""

    def __init__(self, key: str) -> None:
        super().__init__(self._guard, health=self._guard)
        self._key = f"Bearer {key}".encode()
        self.is_shut = False
        self.pages = dict.fromkeys(("/metrics", "/v1/models", "/props"), self._guard)

    async def _guard(self, connection: EngineConnection) -> None:
        request = connection.requests[-1]
        if self.is_shut and self._key in request:
            connection.reset()
        else:
            connection.send(self._page(request.split(b" ", 2)[1].decode()) or http_reply())


async def test_a_replica_that_cannot_reach_any_engine_takes_none_from_the_others(
    tmp_path: Path, server: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(GuardedEngine("key-of-the-lost")) for _ in range(4)]
        some = await stack.enter_async_context(replicas(tmp_path, server, *engines))
        lost = await some.start(BACKEND_API_KEY="key-of-the-lost")
        well = [await some.start(BACKEND_API_KEY="key-of-the-others") for _ in range(2)]
        for proxy in (lost, *well):
            for engine in engines:
                await proxy.becomes(engine, "up")
        await asyncio.gather(*(keep_asking(proxy, engines) for proxy in well), cut_off(lost, engines))
        for proxy in well:
            assert not [line for line in proxy.events.splitlines() if " is down" in line or " is suspect" in line]


async def keep_asking(proxy: Proxy, engines: Iterable[Engine]) -> None:
    """All requests succeed, and all engines stay in rotation."""
    for _ in range(100):
        assert (await proxy.post()).status == 200
        assert {await proxy.state(engine) for engine in engines} == {"up"}
        await asyncio.sleep(0.1)


async def cut_off(proxy: Proxy, engines: list[GuardedEngine]) -> None:
    """Twice, the network between ``proxy`` and the engines breaks."""
    for _ in range(2):
        for engine in engines:
            engine.is_shut = True
        for _ in range(8):
            await proxy.post()
        for engine in engines:
            await proxy.becomes(engine, "down")
        for engine in engines:
            engine.is_shut = False
        for engine in engines:
            await eventually(lambda engine=engine: is_live(proxy, engine))  # type: ignore[misc]


async def is_live(proxy: Proxy, engine: Engine) -> bool:
    return await proxy.state(engine) != "down"
