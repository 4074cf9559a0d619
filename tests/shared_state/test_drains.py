"""What an operator drains at one replica is drained at all of them."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from end_to_end.test_announce import has
from end_to_end.test_joining import Streams, add, remove
from shared_state.operators import command, is_drained, replicas, row, shares
from support.engine import Engine, answers_with
from support.fakes.engine import EngineConnection, http_reply
from support.ports import free_port
from support.program import Proxy
from support.redis_server import RedisServer
from support.waiting import eventually


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_drain_at_one_replica_applies_to_all_and_an_undrain_at_another_ends_it(
    tmp_path: Path, server: RedisServer, workers: str
) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, engine, other) as some:
            first, second, third = await some.start_some(3, WORKERS=workers)

            answer = await command(first, engine, query="?wait_seconds=20")
            assert (answer["safe_to_stop"], answer["silent_replicas"]) == (True, [])
            assert [one["draining"] for one in answer["replicas"]] == [True, True]
            before = len(engine.served)
            for proxy in (first, second, third):
                await eventually(is_drained(proxy, engine))
                for _ in range(6):
                    assert (await proxy.post()).status == 200
            assert len(engine.served) == before

            late = await some.start(WORKERS=workers)
            await eventually(is_drained(late, engine))

            await command(second, engine, "undrain")
            for proxy in (first, second, third, late):
                await eventually(is_drained(proxy, engine, expected=False))


async def test_a_replica_whose_workers_were_killed_catches_up(tmp_path: Path, server: RedisServer) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, engine, other) as some:
            first, second = await some.start_some(2, WORKERS="2")
            await command(first, other)
            await eventually(is_drained(second, other))
            for worker in second.workers:
                os.kill(worker, signal.SIGKILL)
            await command(first, engine)
            await command(first, other, "undrain")
            await eventually(is_drained(second, engine))
            await eventually(is_drained(second, other, expected=False))
            await eventually(lambda: shares(first, 2))
            assert (await command(first, engine))["safe_to_stop"] is True


async def test_a_replica_that_was_cut_off_catches_up_and_the_last_command_counts(
    tmp_path: Path, server: RedisServer
) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, engine, other) as some:
            first, second = await some.start_some(2)
            await command(first, other)
            await eventually(is_drained(second, other))

            server.kill()
            await eventually(lambda: is_away(first))
            await eventually(lambda: is_away(second))
            answer = await command(first, engine)
            assert (answer["draining"], answer["safe_to_stop"], len(answer["silent_replicas"])) == (True, False, 1)
            await command(second, other, "undrain")
            assert not await is_drained(second, engine)()
            assert await is_drained(first, other)()

            server.start()  # without its data
            await eventually(is_drained(second, engine))
            await eventually(is_drained(first, other, expected=False))
            assert await is_drained(first, engine)()
            assert await is_drained(second, other, expected=False)()


async def test_a_drained_backend_is_safe_to_stop_once_no_replica_has_a_request_on_it(
    tmp_path: Path, server: RedisServer
) -> None:
    streams = Streams()
    async with Engine(streams) as engine, replicas(tmp_path, server, engine) as some, AsyncExitStack() as calls:
        first, second = await some.start_some(2)
        call = await calls.enter_async_context(second.call())
        call.send()
        assert await call.head() == 200

        answer = await command(first, engine)
        assert (answer["draining"], answer["safe_to_stop"], answer["requests_in_flight"]) == (True, False, 0)
        assert [one["requests_in_flight"] for one in answer["replicas"]] == [1]

        waiting = asyncio.ensure_future(command(first, engine, query="?wait_seconds=30"))  # noqa: TID251
        await asyncio.sleep(0.5)
        assert not waiting.done()
        streams.may_end.set()
        assert (await waiting)["safe_to_stop"] is True


async def test_a_drain_with_move_continues_the_streams_of_all_replicas_elsewhere(
    tmp_path: Path, server: RedisServer
) -> None:
    async with Engine(begins_only) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, engine, other) as some, AsyncExitStack() as calls:
            first, second = await some.start_some(2)
            await command(second, other)
            await eventually(is_drained(first, other))
            call = await calls.enter_async_context(second.call(stream=False))
            call.send()
            await eventually(lambda: engine.open_requests == 1)
            await command(first, other, "undrain")
            await eventually(is_drained(second, other, expected=False))

            answer = await command(first, engine, query="?move=1&wait_seconds=30")
            assert answer["safe_to_stop"] is True
            assert await call.head() == 200
            assert len(other.served) == 1


async def test_a_replica_that_ends_without_a_word_is_silent_and_one_that_stops_is_not(
    tmp_path: Path, server: RedisServer
) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, engine, other) as some:
            first, second, third = await some.start_some(3)
            await asyncio.to_thread(second.stop)
            await eventually(lambda: shares(first, 2))

            third.signal(signal.SIGSTOP)
            try:
                answer = await command(first, engine)
                assert (answer["safe_to_stop"], len(answer["silent_replicas"])) == (False, 1)
            finally:
                third.signal(signal.SIGCONT)
            await eventually(lambda: shares(first, 2))
            await eventually(is_drained(third, engine))
            assert (await command(first, engine))["safe_to_stop"] is True


async def test_replicas_of_the_same_name_count_one_by_one(tmp_path: Path, server: RedisServer) -> None:
    streams = Streams()
    async with Engine(streams) as engine, replicas(tmp_path, server, engine) as some, AsyncExitStack() as calls:
        port = str(free_port())
        (first,) = await some.start_some(1)
        for address in ("127.0.0.1", "127.0.0.2"):
            proxy = await some.start(HOST=address, PORT=port)
            call = await calls.enter_async_context(proxy.call())
            call.send()
            assert await call.head() == 200
        await eventually(lambda: shares(first, 3))
        answer = await command(first, engine)
        assert sorted(one["requests_in_flight"] for one in answer["replicas"]) == [1, 1]
        assert answer["safe_to_stop"] is False
        streams.may_end.set()


async def test_a_drain_ends_when_the_backend_has_left_all_replicas(tmp_path: Path, server: RedisServer) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        async with replicas(tmp_path, server, other) as some:
            first, second = await some.start_some(2)
            await add_to_all(first, second, engine)
            await command(first, engine)
            await eventually(is_drained(second, engine))
            await remove_from_all(first, second, engine)
            await add_to_all(second, first, engine)
            assert not (await row(first, engine))["draining"]
            assert not (await row(second, engine))["draining"]


async def is_away(proxy: Proxy) -> bool:
    return not (await proxy.health())["shared_state"]["available"]


async def begins_only(connection: EngineConnection) -> None:
    """Takes a request and does not answer it."""
    await connection.ended


async def add_to_all(proxy: Proxy, other: Proxy, engine: Engine) -> None:
    assert (await add(proxy, url=engine.url)).status == 201
    await eventually(lambda: has(other, engine.url))


async def remove_from_all(proxy: Proxy, other: Proxy, engine: Engine) -> None:
    assert (await remove(proxy, engine.url)).json["safe_to_stop"] is True
    assert not await has(other, engine.url)
