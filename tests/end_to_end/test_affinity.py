"""Backend-local resources are located under every policy, with engines that store responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from end_to_end.stateful_engine import StatefulEngine
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import Call, Reply, chat, send
from support.program import Proxy, program
from support.waiting import eventually

RESPONSES = "/v1/responses"
KEY = "key-of-the-operators"


@pytest.fixture
async def engines() -> AsyncIterator[list[StatefulEngine]]:
    async with StatefulEngine("a") as one, StatefulEngine("b") as other:
        yield [one, other]


async def make(proxy: Proxy, *, stream: bool = False, after: str | None = None) -> Reply:
    body = {"model": "m", "input": "hi", "stream": stream, "previous_response_id": after}
    return await send(proxy.url, RESPONSES, body)


async def ask(proxy: Proxy, response: str, method: str = "GET", below: str = "") -> Reply:
    return await send(proxy.url, f"{RESPONSES}/{response}{below}", method=method)


def id_in(reply: Reply) -> str:
    """The first id in a complete response or in the first event of a stream."""
    assert reply.status == 200, reply.body
    return reply.body.partition(b'"id": "')[2].partition(b'"')[0].decode()


def homes(engines: list[StatefulEngine]) -> dict[str, str]:
    """The URL of the engine that stores each response, by id."""
    return {response: engine.url for engine in engines for response in engine.stored}


async def fill(proxy: Proxy, engines: list[StatefulEngine]) -> None:
    """Create responses until every engine stores one."""
    while not all(engine.stored for engine in engines):
        await make(proxy)


def not_found(engines: list[StatefulEngine]) -> list[int]:
    return [engine.not_found for engine in engines]


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_stored_response_is_requested_from_its_home_backend(
    tmp_path: Path, engines: list[StatefulEngine], policy: str, stream: bool
) -> None:
    async with program(tmp_path, *engines, BALANCING_POLICY=policy) as proxy:
        made = [await make(proxy, stream=stream) for _ in range(12)]

        for reply in made:
            response, home = id_in(reply), reply.headers["x-backend"]
            replies = [await make(proxy, stream=stream, after=response)]
            for method, below in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
                replies.append(await ask(proxy, response, method, below))
            assert {(one.status, one.headers["x-backend"]) for one in replies} == {(200, home)}
    assert all(engine.stored for engine in engines)
    assert not_found(engines) == [0, 0]


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
async def test_unknown_home_is_found_by_asking_every_backend_once(
    tmp_path: Path, engines: list[StatefulEngine], policy: str
) -> None:
    async with program(tmp_path / "first", *engines) as first:
        await fill(first, engines)
    known = homes(engines)
    async with program(tmp_path / "second", *engines, BALANCING_POLICY=policy) as second:
        for response, home in known.items():
            assert (await make(second, after=response)).headers["x-backend"] == home
        once = not_found(engines)
        for response, home in known.items():
            assert (await ask(second, response)).headers["x-backend"] == home
            assert (await make(second, after=response)).headers["x-backend"] == home
    assert sum(once) <= len(known)  # at most one unsuccessful request for each response
    assert not_found(engines) == once


async def test_stored_completion_is_found_by_asking(tmp_path: Path, engines: list[StatefulEngine]) -> None:
    engines[0].stored, engines[1].stored = ["chatcmpl-a"], ["chatcmpl-b"]
    async with program(tmp_path, *engines) as proxy:
        for engine in engines * 2:
            reply = await send(proxy.url, f"/v1/chat/completions/{engine.stored[0]}")
            assert (reply.status, reply.json["engine"]) == (200, engine.name)
    assert sum(not_found(engines)) <= 2


async def test_missing_resource_gets_the_last_engines_404(tmp_path: Path, engines: list[StatefulEngine]) -> None:
    async with program(tmp_path, *engines) as proxy:
        for reply in [await ask(proxy, "resp_x"), await make(proxy, after="resp_x")]:
            named = next(engine for engine in engines if engine.url == reply.headers["x-backend"])
            assert reply.status == 404
            assert reply.json == {"error": {"message": f"not found by {named.name}", "code": 404}}
    assert not_found(engines) == [2, 2]


async def test_worker_finds_a_response_made_through_another_worker(
    tmp_path: Path, engines: list[StatefulEngine]
) -> None:
    async with program(tmp_path, *engines, WORKERS="2") as proxy:
        for _ in range(20):
            made = await make(proxy)
            for reply in [await ask(proxy, id_in(made)), await make(proxy, after=id_in(made))]:
                assert (reply.status, reply.headers["x-backend"]) == (200, made.headers["x-backend"])


async def test_request_for_a_home_that_is_down_fails_without_asking_others(
    tmp_path: Path, engines: list[StatefulEngine]
) -> None:
    gone, other = engines
    async with program(tmp_path, *engines) as proxy:
        await fill(proxy, engines)
        response, served = gone.stored[0], len(other.served)
        await gone.go()
        gone.die()

        for reply in [await ask(proxy, response), await make(proxy, after=response), await ask(proxy, response)]:
            assert (reply.status, reply.json["error"]["code"]) == (503, "home_unavailable")
            assert int(reply.headers["retry-after"]) >= 1
        assert len(other.served) == served

        gone.stored.clear()  # the engine had stored it in memory
        await gone.listen_again()
        await proxy.becomes(gone, "up")
        assert (await ask(proxy, response)).json["error"]["message"] == "not found by a"
        assert len(other.served) == served


async def test_draining_home_gets_requests_for_its_resources(tmp_path: Path, engines: list[StatefulEngine]) -> None:
    home, other = engines
    async with program(tmp_path, *engines, ADMIN_KEY=KEY) as proxy:
        await fill(proxy, engines)
        name = home.url.removeprefix("http://")
        bearer = {"Authorization": f"Bearer {KEY}"}
        await send(proxy.url, f"/admin/backends/{name}/drain", method="POST", headers=bearer)

        for reply in [await make(proxy, after=home.stored[0]), await ask(proxy, home.stored[0])]:
            assert (reply.status, reply.headers["x-backend"]) == (200, home.url)
        assert {(await make(proxy)).headers["x-backend"] for _ in range(6)} == {other.url}

        home.stored.append("resp_unknown")  # as if another proxy had made it
        assert (await ask(proxy, "resp_unknown")).headers["x-backend"] == home.url


async def test_request_that_needs_a_slot_waits_for_its_busy_home(tmp_path: Path, engines: list[StatefulEngine]) -> None:
    home, other = engines
    for engine in engines:
        engine.owner, engine.slots = "llamacpp", 1
    async with program(tmp_path, *engines, BACKEND_QUEUE_ALLOWANCE="0") as proxy:
        await fill(proxy, engines)
        response, usual, may_end = home.stored[0], home.answer, asyncio.Event()

        async def is_slow(connection: EngineConnection) -> None:
            if b"POST /v1/chat" in connection.requests[-1]:
                await may_end.wait()
                connection.send(http_reply())
            else:
                await usual(connection)

        home.answer = other.answer = is_slow
        async with (
            Call(proxy.url, "/v1/chat/completions", chat()) as one,
            Call(proxy.url, "/v1/chat/completions", chat()) as two,
        ):
            one.send()
            two.send()
            await eventually(lambda: each_has_a_chat_request(engines))
            waiting = asyncio.get_running_loop().create_task(make(proxy, after=response))
            await asyncio.sleep(0.1)
            assert (await ask(proxy, response)).headers["x-backend"] == home.url
            assert not waiting.done()
            may_end.set()
            assert ((await waiting).status, (await waiting).headers["x-backend"]) == (200, home.url)
    assert not_found(engines) == [0, 0]


def each_has_a_chat_request(engines: list[StatefulEngine]) -> bool:
    return all(any(b"POST /v1/chat" in request for request in engine.served) for engine in engines)
