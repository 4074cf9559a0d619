"""Budgets of tokens hold for all replicas together, and count every token once, whatever happens to the server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from shared_state.replicas import BEARER, TOKENS, Load, replicas, say, shown
from support.engine import Engine
from support.http_client import send
from support.program import Proxy
from support.redis_server import RedisServer
from support.waiting import eventually

LARGE = "tokens_per_day: 1000000000, tokens_per_month: 2000000000"


async def used(proxies: Sequence[Proxy]) -> list[tuple[int, int]]:
    """The tokens of this month and this day, as each replica knows them."""
    budgets = [(await send(proxy.url, "/v1/usage", headers=BEARER)).json["budgets"] for proxy in proxies]
    return [(month["used"], day["used"]) for month, day in budgets]


async def all_know(proxies: Sequence[Proxy], load: Load) -> None:
    """Wait until every replica knows of every token that was used."""
    tokens = load.count(200) * TOKENS
    expected = [(tokens, tokens)] * len(proxies)

    async def know() -> bool:
        return await used(proxies) == expected

    try:
        await eventually(know, seconds=15)
    except AssertionError:
        assert await used(proxies) == expected  # shows both


async def test_a_budget_holds_for_all_replicas(tmp_path: Path, engine: Engine, server: RedisServer) -> None:
    budget, rate = 60_000, 60
    async with replicas(tmp_path, engine, server.url, f"tokens_per_day: {budget}") as proxies:
        load = Load(proxies, rate)
        await load.run(15)
        reply = await send(proxies[0].url, "/v1/chat/completions", {}, headers=BEARER)
    assert set(load.statuses) == {200, 429}
    assert reply.json["error"]["code"] == "insufficient_quota"
    tokens = load.count(200) * TOKENS
    shown(f"tokens used of a budget, at {rate * TOKENS} tokens a second", tokens, budget)
    assert budget <= tokens < budget + 2.5 * rate * TOKENS  # about a second, on a busy machine more


async def test_every_token_counts_once_and_a_new_replica_knows_them_all(
    tmp_path: Path, engine: Engine, server: RedisServer
) -> None:
    async with replicas(tmp_path, engine, server.url, LARGE) as proxies:
        load = Load(proxies, 60)
        await load.run(3)
        await all_know(proxies, load)
        (tmp_path / "later").mkdir()
        async with replicas(tmp_path / "later", engine, server.url, LARGE, count=1, members=5) as later:
            await send(later[0].url, "/v1/models", headers=BEARER)
            await all_know([*proxies, *later], load)


@pytest.mark.parametrize("keeps_data", [True, False])
async def test_tokens_used_while_the_server_is_away_are_counted_when_it_is_back(
    tmp_path: Path, engine: Engine, keeps_data: bool
) -> None:
    with RedisServer(tmp_path / "redis", keeps_data=keeps_data) as server:
        async with replicas(tmp_path, engine, server.url, LARGE) as proxies:
            load = Load(proxies, 60)
            await load.run(3)
            await all_know(proxies, load)
            server.kill()
            await load.run(3)
            assert all(own < load.count(200) * TOKENS for _, own in await used(proxies))
            server.start()
            await all_know(proxies, load)
    assert set(load.statuses) == {200}
    say(f"all {load.count(200) * TOKENS} tokens are counted, {'with' if keeps_data else 'without'} the server's data")


async def test_a_batch_that_a_frozen_server_carries_out_later_counts_once(
    tmp_path: Path, engine: Engine, server: RedisServer
) -> None:
    async with replicas(tmp_path, engine, server.url, LARGE) as proxies:
        load = Load(proxies, 60)
        running = asyncio.create_task(load.run(8))  # noqa: TID251 - awaited below
        await asyncio.sleep(2)
        for _ in range(2):
            server.freeze()
            await asyncio.sleep(2)
            server.thaw()
            await asyncio.sleep(0.5)
        await running
        await all_know(proxies, load)
    assert set(load.statuses) == {200}
