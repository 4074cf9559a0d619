"""Backends that join or leave one replica join or leave all of them."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from end_to_end.test_announce import announcing, has
from end_to_end.test_joining import add, announce, ask, remove, withdraw
from shared_state.operators import replicas, shares
from shared_state.test_drains import is_away
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.program import Proxy
from support.redis_server import RedisServer
from support.waiting import eventually


def lacks(proxy: Proxy, engine: Engine) -> object:
    async def check() -> bool:
        return not await has(proxy, engine.url)

    return check()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_backend_that_is_added_at_one_replica_joins_all_and_leaves_all(
    tmp_path: Path, server: RedisServer, workers: str
) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, other) as some:
            first, second, third = await some.start_some(3, WORKERS=workers)
            added = await add(first, url=engine.url, weight=2, name="llm-3")
            assert (added.status, added.json["silent_replicas"]) == (201, [])
            assert [one["in_fleet"] for one in added.json["replicas"]] == [True, True]
            for proxy in (first, second, third):
                await proxy.becomes(engine, "up")
            await second.post()
            late = await some.start(WORKERS=workers)
            await late.becomes(engine, "up")
            await eventually(lambda: shares(third, 4))

            changed = await add(second, url=engine.url, weight=3, name="llm-3")
            assert changed.status == 200
            await eventually(lambda: weighs(first, engine, 3))

            left = (await remove(third, "llm-3")).json
            assert (left["in_fleet"], left["safe_to_stop"], left["silent_replicas"]) == (False, True, [])
            for proxy in (first, second, third, late):
                assert not await has(proxy, engine.url)


async def weighs(proxy: Proxy, engine: Engine, weight: float) -> bool:
    rows = (await ask(proxy, "/backends")).json["backends"]
    return [one["weight"] for one in rows if one["url"] == engine.url] == [weight]


async def test_a_file_of_one_replica_is_known_to_all_and_follows_what_others_do(
    tmp_path: Path, server: RedisServer
) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, other) as some:
            file = tmp_path / "added.yaml"
            file.write_text(f"backends:\n- url: {engine.url}\n")
            first = await some.start(DYNAMIC_BACKENDS_FILE=str(file))
            second = await some.start()
            await eventually(lambda: shares(second, 2))
            await eventually(lambda: has(second, engine.url))

            await asyncio.to_thread(first.stop)
            await eventually(lambda: shares(second, 1))
            assert (await remove(second, engine.url)).json["safe_to_stop"] is True
            first = await some.start(DYNAMIC_BACKENDS_FILE=str(file))
            await eventually(lambda: shares(first, 2))
            assert not await has(first, engine.url)
            assert engine.url not in file.read_text()


async def test_a_lease_at_one_replica_counts_at_all_and_ends_at_all(tmp_path: Path, server: RedisServer) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, other) as some:
            first, second, third = await some.start_some(3)
            with announcing(tmp_path, engine.url, first.url) as announcer:
                for proxy in (first, second, third):
                    await eventually(lambda proxy=proxy: has(proxy, engine.url))  # type: ignore[misc]
                for _ in range(12):  # of its leases, several would have ended
                    await asyncio.sleep(0.4)
                    assert await has(second, engine.url)
                announcer.signal(signal.SIGTERM)
                assert await announcer.ended() == 0
            for proxy in (first, second, third):
                assert not await has(proxy, engine.url)

            assert (await announce(first, url=engine.url, lease_seconds=2)).status == 200
            await eventually(lambda: has(third, engine.url))
            await asyncio.sleep(16)  # leases are held for a while after the start
            for proxy in (first, second, third):
                await eventually(lambda proxy=proxy: lacks(proxy, engine))  # type: ignore[misc]


async def test_no_lease_ends_while_redis_is_away_and_an_announcer_reaches_one_replica(
    tmp_path: Path, server: RedisServer
) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, other) as some:
            first, second = await some.start_some(2)
            with announcing(tmp_path, engine.url, first.url):  # its leases last 1.2 s
                await eventually(lambda: has(second, engine.url))
                server.kill()
                await eventually(lambda: is_away(second))
                for _ in range(20):
                    await asyncio.sleep(0.5)
                    assert await has(second, engine.url)
                    assert await has(first, engine.url)
                server.start()
                await eventually(lambda: shares(second, 2))
                for _ in range(20):
                    await asyncio.sleep(0.5)
                    assert await has(second, engine.url)


async def test_a_lease_outlives_the_replica_that_alone_received_it_while_that_is_silent(
    tmp_path: Path, server: RedisServer
) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, other) as some:
            first, second = await some.start_some(2)
            await asyncio.sleep(16)  # leases are held for a while after the start
            assert (await announce(first, url=engine.url, lease_seconds=10)).status == 200
            await eventually(lambda: has(second, engine.url))
            first.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(14)
                assert await has(second, engine.url)
                assert (await withdraw(second, engine)).json["in_fleet"] is False
            finally:
                first.signal(signal.SIGCONT)
            await eventually(lambda: lacks(first, engine))
