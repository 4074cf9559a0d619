"""Under least_requests, a conversation stays on its backend although its turns come to different replicas."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shared_state.operators import replicas, shares
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.redis_server import RedisServer
from support.waiting import eventually


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_conversation_stays_on_its_backend_in_all_replicas(
    tmp_path: Path, server: RedisServer, workers: str
) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(answers_with(http_reply()))) for _ in range(8)]
        some = await stack.enter_async_context(replicas(tmp_path, server, *engines))
        proxies = await some.start_some(3, WORKERS=workers)
        for name in "abcd":
            messages = [{"role": "user", "content": f"{name} 1"}]
            homes = set()
            for turn in range(6):
                reply = await proxies[turn % 3].post(body={"model": "m", "messages": messages})
                homes.add(reply.headers["x-backend"])
                messages += [{"role": "assistant", "content": "Well."}, {"role": "user", "content": f"{name} {turn}"}]
                await asyncio.sleep(0.6)  # far more than a batch takes
            assert len(homes) == 1


async def test_a_server_that_is_away_costs_only_the_warm_backend(tmp_path: Path, server: RedisServer) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, engine, other) as some:
            first, second = await some.start_some(2)
            server.freeze()
            for _ in range(20):
                for proxy in (first, second):
                    assert (await proxy.post()).status == 200
            server.thaw()
            await eventually(lambda: shares(first, 2))
            await eventually(lambda: shares(second, 2))
