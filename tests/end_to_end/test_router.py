"""A llama.cpp router behind the proxy: load by model, and models that take turns.

The router is a script over real sockets, because the llama.cpp of the test environment (xllamacpp) has no router mode.
``real_router`` holds the same rules against a real one.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from support.live_proxy import Proxy, live_proxy
from support.router import ScriptedRouter

CHAT = "/v1/chat/completions"


async def ask(proxy: Proxy, model: str) -> float:
    """Send one request; returns after how many seconds the answer, which must be from ``model``, was complete."""
    began = time.monotonic()
    reply = await proxy.http.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": "hi"}]})
    assert (reply.status_code, reply.json()["model"]) == (200, model), reply.text
    return time.monotonic() - began


async def ask_in_turn(proxy: Proxy, requests: int, pause_seconds: float = 0.005) -> list[float]:
    """Requests for two models, one after the other, that do not wait for each other's answers."""
    tasks: list[asyncio.Task[float]] = []
    async with asyncio.TaskGroup() as group:
        for at in range(requests):
            tasks.append(group.create_task(ask(proxy, "ab"[at % 2])))
            await asyncio.sleep(pause_seconds)
    return [task.result() for task in tasks]


async def states(proxy: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = (await proxy.http.get("/health")).json()["details"][0]["model_states"]
    return found


async def test_forty_requests_for_two_models_in_turn_need_a_few_loads_and_break_nothing() -> None:
    async with ScriptedRouter() as router, live_proxy(router.url, model_swap_wait_seconds=0.15) as proxy:
        seconds = await ask_in_turn(proxy, 40)
    assert router.broken == 0
    assert router.loads[:2] == ["a", "b"]
    assert len(router.loads) <= 6
    # One turn of the other model, its running requests and two loads, with a margin for a busy machine.
    assert max(seconds) < 2.0


async def test_without_turns_the_same_requests_load_a_model_again_and_again() -> None:
    """What the test above would see without the feature: each turn ends at once."""
    async with ScriptedRouter() as router, live_proxy(router.url, model_swap_wait_seconds=0) as proxy:
        await ask_in_turn(proxy, 40)
    assert router.broken == 0
    assert len(router.loads) >= 8


@pytest.mark.parametrize("turn_seconds", [0.1, 0.3])
async def test_a_flood_for_one_model_delays_another_one_by_one_turn(turn_seconds: float) -> None:
    async with ScriptedRouter() as router, live_proxy(router.url, model_swap_wait_seconds=turn_seconds) as proxy:
        await ask(proxy, "a")
        flood = True

        async def keep_asking() -> None:
            while flood:
                await ask(proxy, "a")

        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(keep_asking())
            await asyncio.sleep(0.05)
            waited = await ask(proxy, "b")
            flood = False
    assert turn_seconds <= waited < turn_seconds + 1.0
    assert router.broken == 0


async def test_a_model_gets_no_more_requests_than_its_own_slots_allow() -> None:
    async with (
        ScriptedRouter(most=2, slots=3) as router,
        live_proxy(router.url, backend_queue_allowance=0) as proxy,
    ):
        await asyncio.gather(*(ask(proxy, "ab"[at % 4 == 0]) for at in range(40)))
    assert router.most_at_once == {"a": 3, "b": 3}
    assert sorted(router.loads) == ["a", "b"]


async def test_polls_and_reading_clients_never_load_a_model() -> None:
    async with ScriptedRouter() as router, live_proxy(router.url, refresh_seconds=0.05) as proxy:
        await ask(proxy, "a")
        for _ in range(3):
            await asyncio.sleep(0.1)
            reply = await proxy.http.get("/props?model=b&autoload=false")
            assert reply.status_code == 400
            assert b"not loaded" in reply.content
        polled = {request.split(b" ")[1].decode() for request in router.requests if request.startswith(b"GET ")}
    assert router.loads == ["a"]
    assert {"/props?model=a&autoload=false", "/metrics?model=a&autoload=false"} <= polled
    assert not [target for target in polled if "model=b" in target and "/metrics" in target]
    assert not [target for target in polled if target.startswith("/slots")]


async def test_a_reading_client_that_would_load_a_model_waits_for_its_turn_too() -> None:
    async with ScriptedRouter(answer_seconds=0.4) as router, live_proxy(router.url) as proxy:
        running = asyncio.ensure_future(ask(proxy, "a"))
        await asyncio.sleep(0.2)
        reply = await proxy.http.get("/slots?model=b")
        assert reply.status_code == 200
        await running
    assert (router.broken, router.loads) == (0, ["a", "b"])


async def test_health_metrics_and_admin_show_the_models_with_their_load() -> None:
    async with (
        ScriptedRouter(answer_seconds=0.5) as router,
        live_proxy(router.url, refresh_seconds=0.1, admin_key="secret", backend_queue_allowance=0) as proxy,
    ):
        running = [asyncio.ensure_future(ask(proxy, "a")) for _ in range(3)]
        running.append(asyncio.ensure_future(ask(proxy, "b")))
        await asyncio.sleep(0.3)
        found = await states(proxy)
        admin = await proxy.http.get("/admin/backends", headers={"authorization": "Bearer secret"})
        page = (await proxy.http.get("/metrics")).text
        await asyncio.gather(*running)

    assert found["a"] == {"status": "loaded", "in_memory": True, "requests": 2, "waiting": 1, "limit": 2}
    assert found["b"] == {"status": "unloaded", "in_memory": False, "requests": 0, "waiting": 1, "limit": 2}
    row = admin.json()["backends"][0]
    assert (row["most_loaded_models"], set(row["model_states"])) == (1, {"a", "b"})
    assert f'backend_model_requests{{backend="{router.url}",model="a"}} 2.0' in page
    assert f'backend_model_loads_total{{backend="{router.url}"}} 1.0' in page
    assert 'model="b"' not in page.split("backend_model_requests", 1)[1].split("# HELP", 1)[0]


async def test_a_waiting_client_that_leaves_gives_the_turn_back() -> None:
    async with (
        ScriptedRouter(answer_seconds=0.3, slots=1) as router,
        live_proxy(router.url, model_swap_wait_seconds=0.05, backend_queue_allowance=0) as proxy,
    ):
        first = asyncio.ensure_future(ask(proxy, "a"))
        await asyncio.sleep(0.1)
        leaver = asyncio.ensure_future(ask(proxy, "b"))
        await asyncio.sleep(0.1)  # its turn has come: model a gets no new requests
        second = asyncio.ensure_future(ask(proxy, "a"))
        await asyncio.sleep(0.02)
        leaver.cancel()
        await asyncio.gather(first, second)
    assert router.loads == ["a"]


async def test_the_list_of_models_shows_their_status() -> None:
    async with ScriptedRouter() as router, live_proxy(router.url, refresh_seconds=0.05) as proxy:
        await ask(proxy, "b")
        await asyncio.sleep(0.3)
        listed = (await proxy.http.get("/v1/models")).json()["data"]
    assert {entry["id"]: entry["status"]["value"] for entry in listed} == {"a": "unloaded", "b": "loaded"}


async def test_a_router_that_has_the_model_in_memory_goes_before_one_with_room_and_one_that_must_unload() -> None:
    async with (
        ScriptedRouter(most=1) as full,
        ScriptedRouter(most=2) as roomy,
        live_proxy(full.url, roomy.url, refresh_seconds=0.05) as proxy,
    ):
        for router in (full, roomy):
            router._use("a")  # noqa: SLF001 - both have it, whatever the proxy chose
        await asyncio.sleep(0.3)
        for _ in range(4):
            await ask(proxy, "b")
    assert (full.loads, roomy.loads) == (["a"], ["a", "b"])


def test_the_script_counts_what_it_breaks() -> None:
    """Without the proxy: a request for another model breaks the one in progress."""

    async def run() -> ScriptedRouter:
        async with ScriptedRouter(answer_seconds=1.0) as router:
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(_post("a"))
            await asyncio.sleep(0.1)
            _, other = await asyncio.open_connection("127.0.0.1", router.port)
            other.write(_post("b"))
            with pytest.raises(ConnectionError):
                await reader.read()
            other.close()
            return router

    router = asyncio.run(run())
    assert (router.broken, router.loads) == (1, ["a", "b"])


def _post(model: str) -> bytes:
    body = json.dumps({"model": model}).encode()
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
