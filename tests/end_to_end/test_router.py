"""A llama.cpp router behind the proxy: load by model, and models that take turns.

The router is a script over real sockets, because the llama.cpp of the test environment (xllamacpp) has no router mode.
``real_router`` holds the same rules against a real one.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from end_to_end.conftest import StartProxy
from support.http_client import send
from support.live_proxy import Proxy, live_proxy
from support.router import ScriptedRouter
from support.waiting import eventually

CHAT = "/v1/chat/completions"


async def ask(proxy: Proxy, name: str, model: str | None = None) -> None:
    """Send one request for ``name``, which ``model`` must answer; ``None``: the model of that name."""
    reply = await proxy.http.post(CHAT, json={"model": name, "messages": [{"role": "user", "content": "hi"}]})
    assert (reply.status_code, reply.json()["model"]) == (200, model or name), reply.text


async def ask_in_turn(proxy: Proxy, requests: int) -> None:
    """Requests for two models, one after the other, that do not wait for each other's answers."""
    async with asyncio.TaskGroup() as group:
        for at in range(requests):
            group.create_task(ask(proxy, "ab"[at % 2]))
            await asyncio.sleep(0.005)


async def states(proxy: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = (await proxy.http.get("/health")).json()["details"][0]["model_states"]
    return found


async def waiting(proxy: Proxy, model: str) -> int:
    count: int = (await states(proxy))[model]["waiting"]
    return count


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
async def test_forty_requests_for_two_models_in_turn_need_a_few_loads_and_break_nothing(policy: str) -> None:
    async with (
        ScriptedRouter() as router,
        live_proxy(router.url, model_swap_wait_seconds=5, balancing_policy=policy) as proxy,
    ):
        await ask_in_turn(proxy, 40)
    assert router.broken == 0
    assert router.loads[:2] == ["a", "b"]
    assert len(router.loads) <= 6


async def test_without_turns_the_same_requests_load_a_model_again_and_again() -> None:
    """What the test above would see without the feature: each turn ends at once."""
    async with ScriptedRouter() as router, live_proxy(router.url, model_swap_wait_seconds=0) as proxy:
        await ask_in_turn(proxy, 40)
    assert router.broken == 0
    assert len(router.loads) >= 8


async def test_models_take_turns_in_all_workers_together(start_proxy: StartProxy) -> None:
    async with ScriptedRouter() as router:
        proxy = start_proxy(router.url, WORKERS="2", MODEL_SWAP_WAIT_SECONDS="2")

        async def one(model: str) -> tuple[int, str]:
            reply = await send(proxy.url, CHAT, json.dumps({"model": model}).encode())  # on a connection of its own
            return reply.status, json.loads(reply.body)["model"]

        asked = ["ab"[at % 2] for at in range(40)]
        assert await asyncio.gather(*map(one, asked)) == [(200, model) for model in asked]
    assert router.broken == 0
    assert len(router.loads) <= 10


async def test_a_flood_for_one_model_does_not_starve_another_one() -> None:
    async with ScriptedRouter() as router, live_proxy(router.url, model_swap_wait_seconds=0.2) as proxy:
        await ask(proxy, "a")
        answered = asyncio.Event()

        async def keep_asking() -> None:
            while not answered.is_set():
                await ask(proxy, "a")

        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(keep_asking())
            await eventually(lambda: router.in_progress("a") > 0)
            await ask(proxy, "b")
            answered.set()
    assert router.broken == 0
    assert router.loads[:2] == ["a", "b"]


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
        polls = b"GET /metrics?model=a&autoload=false"
        await eventually(lambda: sum(request.startswith(polls) for request in router.requests) >= 3)
        reply = await proxy.http.get("/props?model=b&autoload=false")
        assert (reply.status_code, b"not loaded" in reply.content) == (400, True)
        asked = {request.split(b" ")[1].decode() for request in router.requests if request.startswith(b"GET ")}
    assert router.loads == ["a"]
    own = {"/health", "/v1/models", "/props", "/props?model=a&autoload=false", "/metrics?model=a&autoload=false"}
    assert asked == own | {"/props?model=b&autoload=false"}


async def test_a_reading_client_that_would_load_a_model_waits_for_its_turn_too() -> None:
    async with ScriptedRouter() as router, live_proxy(router.url) as proxy, asyncio.TaskGroup() as group:
        router.freed.clear()
        group.create_task(ask(proxy, "a"))
        await eventually(lambda: router.in_progress("a") == 1)
        reading = group.create_task(proxy.http.get("/slots?model=b"))
        await eventually(lambda: waiting(proxy, "b"))
        router.freed.set()
        assert (await reading).status_code == 200
    assert (router.broken, router.loads) == (0, ["a", "b"])


async def test_names_of_the_operator_take_turns_as_the_models_that_they_mean() -> None:
    names = "models: {a: {aliases: [usual]}, b: {aliases: [other]}}"
    async with (
        ScriptedRouter(slots=1) as router,
        live_proxy(router.url, fleet_file=names, backend_queue_allowance=0) as proxy,
        asyncio.TaskGroup() as group,
    ):
        router.freed.clear()
        group.create_task(ask(proxy, "usual", "a"))
        await eventually(lambda: router.in_progress("a") == 1)
        group.create_task(ask(proxy, "other", "b"))
        await eventually(lambda: waiting(proxy, "b"))
        group.create_task(ask(proxy, "a"))
        await eventually(lambda: waiting(proxy, "a"))
        found = await states(proxy)
        reading = await proxy.http.get("/props?model=other&autoload=false")
        router.freed.set()
    assert [(found[model]["requests"], found[model]["waiting"]) for model in "ab"] == [(1, 1), (0, 1)]
    assert (reading.status_code, b"not loaded" in reading.content) == (400, True)
    assert (router.broken, router.loads) == (0, ["a", "b"])


async def test_a_request_that_waits_too_long_for_the_turn_of_its_model_falls_back_to_one_in_memory() -> None:
    names = "models: {b: {fallbacks: [a], fallback_after_seconds: 0.2}}"
    async with (
        ScriptedRouter(slots=2) as router,
        live_proxy(router.url, fleet_file=names, backend_queue_allowance=0) as proxy,
        asyncio.TaskGroup() as group,
    ):
        router.freed.clear()
        group.create_task(ask(proxy, "a"))
        await eventually(lambda: router.in_progress("a") == 1)
        group.create_task(ask(proxy, "b", "a"))
        await eventually(lambda: router.in_progress("a") == 2)
        assert await waiting(proxy, "b") == 0
        router.freed.set()
    assert (router.broken, router.loads) == (0, ["a"])


async def test_health_metrics_and_admin_show_the_models_with_their_load() -> None:
    async with (
        ScriptedRouter() as router,
        live_proxy(router.url, refresh_seconds=0.1, admin_key="secret", backend_queue_allowance=0) as proxy,
        asyncio.TaskGroup() as group,
    ):
        router.freed.clear()
        for model in "aaab":
            group.create_task(ask(proxy, model))

        async def is_shown() -> bool:
            found = await states(proxy)
            return (found["a"]["status"], found["a"]["waiting"], found["b"]["waiting"]) == ("loaded", 1, 1)

        await eventually(is_shown)
        found = await states(proxy)
        admin = await proxy.http.get("/admin/backends", headers={"authorization": "Bearer secret"})
        page = (await proxy.http.get("/metrics")).text
        router.freed.set()

    assert found["a"] == {"status": "loaded", "in_memory": True, "requests": 2, "waiting": 1, "limit": 2}
    assert found["b"] == {"status": "unloaded", "in_memory": False, "requests": 0, "waiting": 1, "limit": 2}
    row = admin.json()["backends"][0]
    assert (row["most_loaded_models"], set(row["model_states"])) == (1, {"a", "b"})
    assert f'backend_model_requests{{backend="{router.url}",model="a"}} 2.0' in page
    assert f'backend_model_loads_total{{backend="{router.url}"}} 1.0' in page
    assert f'backend_model_requests{{backend="{router.url}",model="b"}}' not in page


async def test_what_expected_time_learns_of_the_models_is_shown_for_the_router() -> None:
    async with ScriptedRouter() as router, live_proxy(router.url, balancing_policy="expected_time") as proxy:
        router.freed.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(proxy, "a"))
            await eventually(lambda: router.in_progress("a") == 1)
            page = (await proxy.http.get("/metrics")).text
            router.freed.set()
    assert f'inference_proxy_backend_prompts_reading{{backend="{router.url}"}} 1.0' in page


async def test_a_waiting_client_that_leaves_gives_the_turn_back() -> None:
    async with (
        ScriptedRouter(slots=2) as router,
        live_proxy(router.url, model_swap_wait_seconds=0, backend_queue_allowance=0) as proxy,
        asyncio.TaskGroup() as group,
    ):
        await ask(proxy, "a")
        router.freed.clear()
        group.create_task(ask(proxy, "a"))
        await eventually(lambda: router.in_progress("a") == 1)
        leaver = group.create_task(ask(proxy, "b"))
        await eventually(lambda: waiting(proxy, "b"))
        group.create_task(ask(proxy, "a"))  # there is a free slot, but the turn is over
        await eventually(lambda: waiting(proxy, "a"))
        leaver.cancel()
        await eventually(lambda: router.in_progress("a") == 2)
        router.freed.set()
    assert router.loads == ["a"]


async def test_the_list_of_models_shows_their_status() -> None:
    async def status_of(proxy: Proxy) -> dict[str, str]:
        listed = (await proxy.http.get("/v1/models")).json()["data"]
        return {entry["id"]: entry["status"]["value"] for entry in listed}

    async with ScriptedRouter() as router, live_proxy(router.url, refresh_seconds=0.05) as proxy:
        await ask(proxy, "b")

        async def is_shown() -> bool:
            return await status_of(proxy) == {"a": "unloaded", "b": "loaded"}

        await eventually(is_shown)


async def test_a_router_with_room_for_a_model_goes_before_one_that_must_unload_another() -> None:
    async with ScriptedRouter(most=1) as full, ScriptedRouter(most=2) as roomy:
        full.load("a")
        roomy.load("a")
        async with live_proxy(full.url, roomy.url) as proxy:
            for _ in range(4):
                await ask(proxy, "b")
    assert (full.loads, roomy.loads) == (["a"], ["a", "b"])


async def test_paths_that_load_and_unload_models_are_blocked() -> None:
    async with ScriptedRouter() as router, live_proxy(router.url) as proxy:
        for path in ("/models/load", "/models/unload"):
            assert (await proxy.http.post(path, json={"model": "a"})).status_code == 403
    assert router.loads == []


async def test_the_script_breaks_requests_in_progress() -> None:
    """Without the proxy: what the tests above would see."""
    async with ScriptedRouter() as router:
        router.freed.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(_post("a"))
        await eventually(lambda: router.in_progress("a") == 1)
        _, other = await asyncio.open_connection("127.0.0.1", router.port)
        other.write(_post("b"))
        with pytest.raises(ConnectionError):
            await reader.read()
        other.close()
    assert (router.broken, router.loads) == (1, ["a", "b"])


def _post(model: str) -> bytes:
    body = json.dumps({"model": model}).encode()
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
