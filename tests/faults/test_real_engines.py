"""Real llama.cpp servers that are frozen, killed, or given more requests than slots."""

from __future__ import annotations

import asyncio

from faults.conftest import CHAT, OTHER
from support.fleet import Fleet
from support.http_client import Reply, chat
from support.llama_server import LlamaServer
from support.waiting import eventually

LIMITS = {"refresh_seconds": 0.4, "backend_first_byte_timeout_seconds": 4, "backend_queue_allowance": 100}
BOUND = {"model": "any", "input": "kin sol mer", "max_output_tokens": 4}


async def test_bf03_requests_on_a_frozen_engine_are_answered_by_another(
    fleet: Fleet, two_servers: list[LlamaServer]
) -> None:
    frozen, other = two_servers
    proxy = await fleet.proxy(frozen, other, **LIMITS)
    frozen.freeze()
    async with asyncio.TaskGroup() as group:
        movable = [group.create_task(proxy.post()) for _ in range(6)]
        await eventually(lambda: any(task.done() for task in movable))
        assert await proxy.metric("requests_in_flight", backend=frozen.url) >= 1
        for task in movable:
            reply = await task
            assert (reply.status, reply.headers["x-backend"]) == (200, other.url)
        assert await proxy.state(frozen) == "down"
        assert await proxy.retries("request_moved") >= 1
    frozen.thaw()
    await proxy.becomes(frozen, "up")


async def test_bf08_only_repeatable_requests_are_retried_when_an_engine_is_killed(
    fleet: Fleet, two_servers: list[LlamaServer]
) -> None:
    victim, other = two_servers
    proxy = await fleet.proxy(victim, other, **LIMITS | {"refresh_seconds": 5})
    victim.freeze()  # so that all its requests stay without an answer
    sent: list[asyncio.Task[Reply]] = []

    async def is_all_else_answered() -> bool:
        stuck = await proxy.metric("requests_in_flight", backend=victim.url)
        return sum(not task.done() for task in sent) == stuck

    async with asyncio.TaskGroup() as group:

        async def stuck(path: str, body: object) -> list[asyncio.Task[Reply]]:
            """Send requests until the victim has some; returns those."""
            before = await proxy.metric("requests_in_flight", backend=victim.url)
            while True:
                tasks = [group.create_task(proxy.post(path, body)) for _ in range(8)]
                sent.extend(tasks)
                await eventually(is_all_else_answered)
                if await proxy.metric("requests_in_flight", backend=victim.url) > before:
                    return [task for task in tasks if not task.done()]

        bound = await stuck(OTHER, BOUND)
        movable = await stuck(CHAT, chat())
        victim.kill()
    assert {task.result().headers["x-backend"] for task in movable} == {other.url}
    lost = [task.result() for task in bound]
    assert {(reply.status, reply.json["error"]["code"]) for reply in lost} == {(502, "backend_disconnected")}
    assert await proxy.retries("backend_disconnected") == len(movable)
    assert await proxy.state(victim) == "down"


async def test_excess_requests_wait_in_the_proxy_not_in_the_engine(
    fleet: Fleet, two_servers: list[LlamaServer]
) -> None:
    server, _ = two_servers
    proxy = await fleet.proxy(server, refresh_seconds=0.1, backend_queue_allowance=0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(proxy.post(CHAT, chat(1500))) for _ in range(8)]
        seen = set()
        while not all(task.done() for task in tasks):
            metrics = await asyncio.to_thread(server.metrics)
            seen.add((await proxy.metric("queue_requests") > 0, metrics["llamacpp:requests_deferred"]))
    assert [task.result().status for task in tasks] == [200] * 8
    assert (True, 0.0) in seen
    assert {deferred for _, deferred in seen} == {0.0}
