"""Requests that arrive before the backends have answered their first poll wait for that answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from support.engine import Engine, answers_with
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet
from support.live_proxy import Proxy
from support.waiting import eventually

MODELS = http_reply(b'{"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}')


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


class SlowToAnswerPolls:
    """A model list that arrives only when ``may_answer`` is set."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def __call__(self, connection: EngineConnection) -> None:
        await self.may_answer.wait()
        await answers_with(MODELS)(connection)


async def slow_engine(fleet: Fleet) -> tuple[Engine, SlowToAnswerPolls]:
    engine, page = await fleet.engine(owner="vllm"), SlowToAnswerPolls()
    engine.pages["/v1/models"] = page
    return engine, page


async def test_a_burst_right_after_the_start_waits_for_the_first_answer(fleet: Fleet) -> None:
    engine, page = await slow_engine(fleet)
    proxy = await fleet.proxy(engine)
    async with asyncio.TaskGroup() as group:
        burst = [group.create_task(proxy.post(body={"model": "m"})) for _ in range(32)]
        await eventually(lambda: queued(proxy, 32))
        page.may_answer.set()
    assert [sent.result().status for sent in burst] == [200] * 32


async def test_requests_at_the_start_wait_within_the_bounds_of_the_queue(fleet: Fleet) -> None:
    engine, _ = await slow_engine(fleet)
    proxy = await fleet.proxy(engine, max_queued_requests=1, queue_timeout_seconds=0.5)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(proxy.post(body={"model": "m"}))
        await eventually(lambda: queued(proxy, 1))
        rejected = await proxy.post(body={"model": "m"})
    assert (rejected.status, rejected.json["error"]["code"]) == (429, "queue_full")
    timed_out = waiting.result()
    assert (timed_out.status, timed_out.json["error"]["code"]) == (503, "queue_timeout")


async def test_requests_at_the_start_fail_once_every_backend_has_failed(fleet: Fleet) -> None:
    engine, _ = await slow_engine(fleet)
    gone = await fleet.engine()
    await gone.stop()
    proxy = await fleet.proxy(engine, gone, refresh_seconds=0.5)
    answers = await asyncio.gather(*(proxy.post(body={"model": "m"}) for _ in range(4)))
    assert {(reply.status, reply.json["error"]["code"]) for reply in answers} == {(503, "no_backend_available")}
    assert all("retry-after" in reply.headers for reply in answers)


async def queued(proxy: Proxy, count: int) -> bool:
    return await proxy.metric("queue_requests") == count
