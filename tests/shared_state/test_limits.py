"""Limits of keys hold for all replicas together, whatever happens to the server. Real replicas, under load.

The offered load is far above the limits, so exactly what the limits allow should be admitted: a whole bucket, and what
it grows by. ``-s`` prints the measured figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared_state.replicas import Answers, Load, replicas, say, shown
from support.engine import Engine
from support.http_client import send
from support.redis_server import RedisServer
from support.waiting import eventually

MINUTE = 60.0
LIMIT = 1200  # requests a minute: 20 a second
RATE = 120.0  # requests a second
EXACT, AWAY = 0.02, 0.10


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(Answers(10), owner="vllm") as engine:
        yield engine


def allowed(limit: float, seconds: float) -> float:
    """What a full bucket allows in this time."""
    return limit * (1 + seconds / MINUTE)


@pytest.mark.parametrize(("count", "workers"), [(4, 1), (2, 2)])
async def test_the_limit_is_exact_over_replicas_and_workers(
    tmp_path: Path, engine: Engine, server: RedisServer, count: int, workers: int
) -> None:
    limits, members = f"requests_per_minute: {LIMIT}", count * workers
    async with replicas(tmp_path, engine, server.url, limits, count, members, WORKERS=str(workers)) as proxies:
        load = Load(proxies, RATE)
        await load.run(25)
    assert set(load.statuses) == {200, 429}
    what = f"requests admitted by {count} replicas with {workers} workers each"
    assert shown(what, load.count(200), allowed(LIMIT, load.seconds)) < EXACT


async def test_below_the_limit_no_request_is_rejected(tmp_path: Path, engine: Engine, server: RedisServer) -> None:
    async with replicas(tmp_path, engine, server.url, f"requests_per_minute: {LIMIT}") as proxies:
        load = Load(proxies, 0.9 * LIMIT / MINUTE)
        await load.run(10)
        burst = Load(proxies[:1], 400)
        await burst.run(1)
    assert set(load.statuses) == {200}
    assert shown("of a burst at one replica within the limit", burst.count(200), len(burst.answered)) < EXACT


@pytest.mark.parametrize("keeps_data", [True, False])
async def test_a_killed_server_fails_no_request_and_its_limits_go_on(
    tmp_path: Path, engine: Engine, keeps_data: bool
) -> None:
    with RedisServer(tmp_path / "redis", keeps_data=keeps_data) as server:
        async with replicas(tmp_path, engine, server.url, f"requests_per_minute: {LIMIT}") as proxies:
            load = Load(proxies, RATE, changes=False)
            await load.run(18)
            killed_at = time.monotonic()
            server.kill()
            await load.run(15)
            restarted_at = time.monotonic()
            server.start()
            await load.run(15)
            ended_at = time.monotonic()
            page = await send(proxies[0].url, "/metrics")
            events = [proxy.events for proxy in proxies]
    assert set(load.statuses) == {200, 429}
    away, after = load.count(200, killed_at, restarted_at), load.count(200, restarted_at)
    each_second = LIMIT / MINUTE
    assert shown("admitted while the server was away", away, each_second * (restarted_at - killed_at)) < AWAY
    what = f"admitted after it was back {'with its data' if keeps_data else 'empty'}"
    assert shown(what, after, each_second * (ended_at - restarted_at)) < AWAY
    assert shown("admitted in all", load.count(200), allowed(LIMIT, load.seconds)) < AWAY
    assert b"\ninference_proxy_shared_state_failures_total 1.0\n" in page.body
    for text in events:
        assert text.count("cannot be used") == 1, text
        assert text.count("answers again") == 1, text


async def test_a_frozen_server_delays_no_request(tmp_path: Path, engine: Engine, server: RedisServer) -> None:
    async with replicas(tmp_path, engine, server.url, f"requests_per_minute: {LIMIT}") as proxies:
        load = Load(proxies, RATE, changes=False)
        await load.run(18)
        usual = load.latency(0.9)
        frozen = Load(proxies, RATE, changes=False)
        server.freeze()
        await frozen.run(6)
        server.thaw()
        await load.run(10)
        seconds = load.seconds
    assert set(frozen.statuses) | set(load.statuses) == {200, 429}
    say(f"90 % of requests within {usual * 1000:.0f} ms; while frozen {frozen.latency(0.9) * 1000:.0f} ms")
    assert frozen.latency(0.9) < usual + 0.25  # a call of the server would wait for a second
    admitted = load.count(200) + frozen.count(200)
    assert shown("admitted with 6 s of a frozen server", admitted, allowed(LIMIT, seconds)) < AWAY


async def test_slots_of_all_replicas_together_are_never_exceeded_and_hardly_left_free(
    tmp_path: Path, server: RedisServer
) -> None:
    slots, seconds = 40, 12.0
    answers, samples = Answers(10, seconds=0.5), []
    async with (
        Engine(answers, owner="vllm") as engine,
        replicas(tmp_path, engine, server.url, f"concurrent_requests: {slots}") as proxies,
    ):
        load = Load(proxies, 200)
        running = asyncio.create_task(load.run(seconds))  # noqa: TID251 - awaited below
        began = time.monotonic()
        while not running.done():
            if 2 < time.monotonic() - began < seconds:
                samples.append(answers.running)
            await asyncio.sleep(0.02)
        await running
    assert set(load.statuses) == {200, 429}
    say(f"requests at a time: at most {answers.most} of {slots}")
    assert shown("requests at a time, on average", sum(samples) / len(samples), slots) < 0.15
    assert answers.most <= slots


async def test_the_slots_of_a_killed_replica_return(tmp_path: Path, server: RedisServer) -> None:
    async with (
        Engine(owner="vllm") as engine,
        replicas(tmp_path, engine, server.url, "concurrent_requests: 8") as proxies,
    ):
        engine.freed.clear()
        load = Load(proxies[:1], 40)
        running = asyncio.create_task(load.run(0.4))  # noqa: TID251 - awaited below
        await eventually(lambda: engine.open_requests == 8)
        other = Load(proxies[1:2], 20)
        waiting = asyncio.create_task(other.run(8))  # noqa: TID251 - awaited below
        await asyncio.sleep(1)
        assert engine.open_requests <= 9  # a replica that has not heard of the others lets one request pass
        killed_at = time.monotonic()
        proxies[0].kill()
        await eventually(lambda: engine.open_requests == 8)
        say(f"the slots of a killed replica are used by another one after {time.monotonic() - killed_at:.1f} s")
        engine.freed.set()
        await asyncio.gather(running, waiting, return_exceptions=True)


async def test_tokens_per_minute_are_exact_over_replicas(tmp_path: Path, server: RedisServer) -> None:
    tokens, limit = 50, 60_000
    async with (
        Engine(Answers(tokens), owner="vllm") as engine,
        replicas(tmp_path, engine, server.url, f"tokens_per_minute: {limit}") as proxies,
    ):
        load = Load(proxies, RATE)
        await load.run(25)
    assert set(load.statuses) == {200, 429}
    assert shown("tokens used", load.count(200) * tokens, allowed(limit, load.seconds)) < EXACT
