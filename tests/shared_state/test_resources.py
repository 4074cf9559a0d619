"""Which backend has which response, stream and completion, and whose they are, is known to all replicas."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from end_to_end.stateful_engine import StatefulEngine
from end_to_end.test_ownership import CHAT, KEYS, RESPONSES, STREAM, Proxied
from shared_state.operators import Replicas, replicas
from shared_state.test_drains import is_away
from shared_state.test_ways import delayed
from support.http_client import Reply, send
from support.program import Proxy
from support.redis_server import RedisServer
from support.waiting import eventually

_TOLD_SECONDS = 1.0  # far more than a batch takes


async def some_engines(
    stack: AsyncExitStack, folder: Path, server: RedisServer
) -> tuple[list[StatefulEngine], Replicas]:
    engines = [await stack.enter_async_context(StatefulEngine(name)) for name in "abcd"]
    return engines, await stack.enter_async_context(replicas(folder, server, *engines))


async def create(proxy: Proxy) -> str:
    reply = await proxy.post(RESPONSES, {"model": "m"})
    assert reply.status == 200
    return str(reply.json["id"])


async def continued(proxy: Proxy, response: str) -> Reply:
    return await proxy.post(RESPONSES, {"model": "m", "previous_response_id": response})


async def test_a_response_is_found_at_once_by_other_replicas_and_by_those_that_start_later(
    tmp_path: Path, server: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        engines, some = await some_engines(stack, tmp_path, server)
        first, second = await some.start_some(2)
        ids = [await create(first) for _ in range(8)]
        await asyncio.sleep(_TOLD_SECONDS)
        late = await some.start()
        for proxy in (second, late):
            for response in ids:
                assert (await continued(proxy, response)).status == 200
                assert (await send(proxy.url, f"{RESPONSES}/{response}")).status == 200
        assert sum(engine.not_found for engine in engines) == 0


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_without_redis_the_backends_are_asked_as_ever(tmp_path: Path, server: RedisServer, fault: str) -> None:
    async with AsyncExitStack() as stack:
        engines, some = await some_engines(stack, tmp_path, server)
        first, second = await some.start_some(2)
        getattr(server, fault)()
        ids = [await create(first) for _ in range(8)]
        began_at = time.monotonic()
        for response in ids:
            assert (await continued(second, response)).status == 200
        assert time.monotonic() - began_at < 20.0
        assert sum(engine.not_found for engine in engines) > 0
        await eventually(lambda: is_away(first))

        before = sum(engine.not_found for engine in engines)
        ids = [await create(first) for _ in range(8)]  # told when the server is back
        server.start() if fault == "kill" else server.thaw()
        await eventually(lambda: knows(server, second))
        await asyncio.sleep(3 * _TOLD_SECONDS)
        for response in ids:
            assert (await continued(second, response)).status == 200
        assert sum(engine.not_found for engine in engines) == before


async def test_a_slow_server_costs_a_request_for_an_unknown_resource_little(
    tmp_path: Path, server: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        _, some = await some_engines(stack, tmp_path, server)
        port = await stack.enter_async_context(delayed(server.port, 0.2))
        first, second = await some.start_some(2, STATE_URL=f"redis://127.0.0.1:{port}")
        response = await create(first)
        await asyncio.sleep(2 * _TOLD_SECONDS)
        assert (await continued(second, response)).status == 200  # it was told
        late = await some.start(STATE_URL=f"redis://127.0.0.1:{port}")
        waits = []
        for response in [await create(first) for _ in range(10)]:
            began_at = time.monotonic()
            assert (await continued(late, response)).status == 200  # not told yet
            waits.append(time.monotonic() - began_at)
        assert min(waits) < 0.3  # an answer of the server takes 0.4 s


async def knows(server: RedisServer, proxy: Proxy) -> bool:
    del server
    return not await is_away(proxy)


async def test_the_next_turn_of_a_stream_moves_its_home_in_all_replicas(tmp_path: Path, server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        engines, some = await some_engines(stack, tmp_path, server)
        first, second = await some.start_some(2)
        fields = {"x-conversation-id": "conversation-1"}
        assert (await first.post(CHAT, {"model": "m"}, **fields)).status == 200
        home = await home_of(second, engines)
        await asyncio.gather(*(stop_and_wait(proxy, home) for proxy in (first, second)))
        assert (await second.post(CHAT, {"model": "m"}, **fields)).status == 200
        assert (await home_of(first, engines)) is not home


async def home_of(proxy: Proxy, engines: list[StatefulEngine]) -> StatefulEngine:
    """The only engine that gets a request for the stream."""
    await asyncio.sleep(_TOLD_SECONDS)
    before = [engine.not_found for engine in engines]
    await send(proxy.url, f"{STREAM}?conv_id=conversation-1")
    asked = [engine for engine, count in zip(engines, before, strict=True) if engine.not_found > count]
    assert len(asked) == 1
    return asked[0]


async def stop_and_wait(proxy: Proxy, engine: StatefulEngine) -> None:
    await engine.stop()
    await proxy.becomes(engine, "down")


async def test_a_response_belongs_to_its_key_in_all_replicas(tmp_path: Path, server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        _, some = await some_engines(stack, tmp_path, server)
        (keys := tmp_path / "keys.yaml").write_text(KEYS)
        settings: dict[str, Any] = {"API_KEYS_FILE": str(keys)}
        first, second = await some.start_some(2, **settings)
        created = await Proxied(first.url).create("alice")
        completion = await Proxied(first.url).create("alice", CHAT)
        await asyncio.sleep(_TOLD_SECONDS)
        late = await some.start(**settings)
        for proxy in (Proxied(second.url), Proxied(late.url)):
            for path, resource in ((RESPONSES, created), (CHAT, completion)):
                assert (await proxy.ask("bob", "GET", f"{path}/{resource}")).status == 404
                assert (await proxy.ask("alice", "GET", f"{path}/{resource}")).status == 200
            after = {"model": "m", "previous_response_id": created}
            assert (await proxy.ask("bob", "POST", RESPONSES, after)).status == 404
            assert (await proxy.ask("alice", "POST", RESPONSES, after)).status == 200
