"""Faults of the backend that continues a stream."""

from __future__ import annotations

import asyncio
import json

import pytest

from faults.conftest import CHAT
from support.engine import STREAM_HEAD, Engine, answers_with, chunk, hangs
from support.fakes.engine import EngineConnection
from support.fleet import Fleet
from support.http_client import Call, chat, send
from support.waiting import eventually

END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(content: str | None, finish: str | None = None, **delta: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish}
    members = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(members).encode() + b"\n\n"


async def breaks_after_two_events(connection: EngineConnection) -> None:
    connection.send(STREAM_HEAD, chunk(event("one", role="assistant")), chunk(event(" two")))
    connection.finish()
    await hangs(connection)


class Continuing(Engine):
    """Continues a stream once it is freed; ``begins``: at once with an event that has nothing for the client."""

    def __init__(self, *, begins: bool, processing: int) -> None:
        super().__init__(self._continue, processing=processing)
        self._begins = begins
        self.freed.clear()

    async def _continue(self, connection: EngineConnection) -> None:
        opening = STREAM_HEAD + chunk(event(None, role="assistant"))
        connection.send(opening if self._begins else b"")
        await self.freed.wait()
        connection.send(b"" if self._begins else opening, chunk(event(" three", "stop")), chunk(DONE), END)


@pytest.fixture(params=[False, True], ids=["silent", "begun"])
def begins(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_continuation_stays_on_a_stuck_backend_if_no_other_may_have_it(fleet: Fleet, begins: bool) -> None:
    """The backend that broke the stream works again, but it does not get the stream a second time."""
    broken = await fleet.engine(breaks_after_two_events)
    stuck = await fleet.add(Continuing(begins=begins, processing=5))
    proxy = await fleet.proxy(broken, stuck, refresh_seconds=0.2, suspect_after_seconds=0.6)
    async with Call(proxy.url, CHAT, chat(stream=True)) as call:
        call.send()
        assert await call.head() == 200
        await proxy.becomes(stuck, "suspect")
        assert await proxy.state(broken) == "up"
        stuck.freed.set()
        reply = await call.reply()
    assert reply.complete
    assert all(reply.body.count(part) == 1 for part in (b"one", b" two", b" three", DONE))
    assert (len(broken.served), len(stuck.served)) == (1, 1)


async def test_continuation_stays_on_a_drained_backend_if_no_other_may_have_it(fleet: Fleet, begins: bool) -> None:
    async def hangs_after_two_events(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(event("one", role="assistant")), chunk(event(" two")))
        await hangs(connection)

    first = await fleet.engine(hangs_after_two_events)
    second = await fleet.add(Continuing(begins=begins, processing=5))
    proxy = await fleet.proxy(first, second, admin_key="op")

    async def change(engine: Engine, command: str) -> None:
        path = f"/admin/backends/{engine.url.removeprefix('http://')}/{command}"
        assert (await send(proxy.url, path, method="POST", headers={"Authorization": "Bearer op"})).status == 200

    async with Call(proxy.url, CHAT, chat(stream=True)) as call:
        call.send()
        assert await call.head() == 200
        assert b"one" in await call.event()
        await change(first, "drain?move=1")
        await eventually(lambda: second.served)
        await change(first, "undrain")
        await change(second, "drain?move=1")
        second.freed.set()
        reply = await call.reply()
    assert reply.complete
    assert (reply.body.count(b" three"), reply.body.count(DONE)) == (1, 1)
    assert (len(first.served), len(second.served)) == (1, 1)


async def test_operator_cancels_a_stream_that_waits_for_its_continuation(fleet: Fleet, begins: bool) -> None:
    broken = await fleet.engine(breaks_after_two_events)
    slow = await fleet.add(Continuing(begins=begins, processing=5))
    proxy = await fleet.proxy(broken, slow, admin_key="op")
    async with Call(proxy.url, CHAT, chat(stream=True)) as call:
        call.send()
        assert await call.head() == 200
        await eventually(lambda: slow.served)
        path = f"/admin/requests/{call.headers['x-request-id']}/cancel"
        done = await send(proxy.url, path, method="POST", headers={"Authorization": "Bearer op"})
        assert done.status == 200
        reply = await call.reply()
    assert not reply.complete
    assert (reply.body.count(b'"error"'), reply.body.count(DONE)) == (1, 0)
    await eventually(lambda: not slow.open_requests)
    assert (len(broken.served), len(slow.served)) == (1, 1)


async def test_stream_that_has_just_begun_is_moved_while_the_drain_waits(fleet: Fleet) -> None:
    async def says_a_second_word_when_it_is_freed(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(event("one", role="assistant")))
        await first.freed.wait()
        connection.send(chunk(event(" two")))
        await hangs(connection)

    first = await fleet.add(Engine(says_a_second_word_when_it_is_freed))
    first.freed.clear()
    second = await fleet.add(Continuing(begins=True, processing=5))
    second.freed.set()
    proxy = await fleet.proxy(first, second, admin_key="op")
    async with Call(proxy.url, CHAT, chat(stream=True)) as call, asyncio.TaskGroup() as group:
        call.send()
        assert await call.head() == 200
        assert b"one" in await call.event()
        path = f"/admin/backends/{first.url.removeprefix('http://')}/drain?move=1&wait_seconds=20"
        drain = group.create_task(send(proxy.url, path, method="POST", headers={"Authorization": "Bearer op"}))

        async def is_drained() -> bool:
            return set((await proxy.health())["available_backends"]) == {second.url}

        await eventually(is_drained)
        first.freed.set()
        reply = await call.reply()
        assert (await drain).json["safe_to_stop"]
    assert reply.complete
    assert all(reply.body.count(part) == 1 for part in (b" two", b" three", DONE))


async def test_stream_waits_for_a_backend_for_longer_than_new_requests(fleet: Fleet) -> None:
    broken = await fleet.engine(breaks_after_two_events)
    full = await fleet.add(Continuing(begins=True, processing=1))
    full.slots = 1
    full.freed.set()
    settings = {"refresh_seconds": 0.1, "queue_timeout_seconds": 0.3, "backend_queue_allowance": 0}
    proxy = await fleet.proxy(broken, full, **settings)
    async with Call(proxy.url, CHAT, chat(stream=True)) as call:
        call.send()
        assert await call.head() == 200
        await eventually(lambda: len(broken.served) == 1)
        await asyncio.sleep(1)
        assert not full.served
        full.processing = 0
        reply = await call.reply()
    assert reply.complete
    assert all(reply.body.count(part) == 1 for part in (b"one", b" two", b" three", DONE))


async def test_stream_returns_to_a_backend_that_has_recovered(fleet: Fleet) -> None:
    """Of two backends, both break the stream, one after the other."""

    async def breaks_when_it_is_freed(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD)
        await second.freed.wait()
        connection.send(chunk(event(" three")))
        connection.finish()
        await hangs(connection)

    first = await fleet.engine(breaks_after_two_events)
    second: Engine = await fleet.engine(breaks_when_it_is_freed, processing=5)
    second.freed.clear()
    proxy = await fleet.proxy(first, second)
    async with Call(proxy.url, CHAT, chat(stream=True)) as call:
        call.send()
        assert await call.head() == 200
        await eventually(lambda: second.served)
        await proxy.becomes(first, "up")
        first.answer = answers_with(STREAM_HEAD, chunk(event(" four", "stop")), chunk(DONE), END)
        second.freed.set()
        reply = await call.reply()
    assert reply.complete
    assert all(reply.body.count(part) == 1 for part in (b"one", b" two", b" three", b" four", DONE))
    assert (len(first.served), len(second.served)) == (2, 1)
