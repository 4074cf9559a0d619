"""A real llama.cpp router with two models and room for one, and the proxy in front of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from real_router.servers import Router, is_up
from support.live_proxy import Proxy, live_proxy
from support.waiting import eventually

logger = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"


@pytest.fixture
async def proxy(router: Router) -> AsyncIterator[Proxy]:
    await eventually(lambda: is_up(router.url), 120)
    async with live_proxy(router.url, refresh_seconds=0.5, model_swap_wait_seconds=2, access_log=False) as started:
        yield started


async def ask(http: httpx2.AsyncClient, model: str, tokens: int = 8) -> int:
    """Send one request; returns the number of tokens of its answer."""
    body = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
    reply = await http.post(CHAT, json=body, timeout=120)
    assert (reply.status_code, reply.json()["model"]) == (200, model), reply.text
    answered: int = reply.json()["usage"]["completion_tokens"]
    return answered


@asynccontextmanager
async def flood(http: httpx2.AsyncClient, model: str) -> AsyncIterator[None]:
    """Within the block, the model always has requests."""
    is_over = asyncio.Event()

    async def keep_asking() -> None:
        while not is_over.is_set():
            await ask(http, model, tokens=1500)

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(keep_asking())
        try:
            yield
        finally:
            is_over.set()


async def test_forty_requests_for_two_models_in_turn_are_all_answered(router: Router, proxy: Proxy) -> None:
    async with asyncio.TaskGroup() as group:
        for at in range(40):
            group.create_task(ask(proxy.http, ("tiny-a", "tiny-b")[at % 2], tokens=200))
            await asyncio.sleep(0.01)
    logger.info("%d loads for 40 requests", len(router.loads))
    assert len(router.loads) <= 20


async def test_a_flood_for_one_model_delays_the_other_by_one_turn(router: Router, proxy: Proxy) -> None:
    await ask(proxy.http, "tiny-a")
    async with flood(proxy.http, "tiny-a"):
        began = time.monotonic()
        await asyncio.wait_for(ask(proxy.http, "tiny-b"), 20)  # the router alone waits until tiny-a has no requests
        logger.info("it waited for %.2f s", time.monotonic() - began)
    assert router.loads[:2] == ["tiny-a", "tiny-b"]


async def test_a_long_answer_is_complete_although_another_model_is_asked_for(router: Router, proxy: Proxy) -> None:
    async with asyncio.TaskGroup() as group:
        long = group.create_task(ask(proxy.http, "tiny-a", tokens=3000))
        await eventually(lambda: "tiny-a" in router.loads, 60)
        short = group.create_task(ask(proxy.http, "tiny-b"))
    assert (long.result(), short.result()) == (3000, 8)
    assert router.loads == ["tiny-a", "tiny-b"]


async def test_the_state_of_each_model_is_known_and_polls_load_none(router: Router, proxy: Proxy) -> None:
    async def found() -> dict[str, dict[str, object]]:
        states: dict[str, dict[str, object]] = (await proxy.http.get("/health")).json()["details"][0]["model_states"]
        return states

    async def is_loaded() -> bool:
        return (await found())["tiny-b"]["status"] == "loaded"

    assert {name: state["status"] for name, state in (await found()).items()} == {
        "tiny-a": "unloaded",
        "tiny-b": "unloaded",
    }
    await ask(proxy.http, "tiny-b")
    await eventually(is_loaded)
    await asyncio.sleep(2)  # some polls
    states = await found()
    assert states["tiny-b"]["limit"] == 3  # its 2 slots, and BACKEND_QUEUE_ALLOWANCE
    assert states["tiny-a"]["in_memory"] is False
    assert router.loads == ["tiny-b"]
    page = (await proxy.http.get("/metrics")).text
    assert f'backend_model_loads_total{{backend="{router.url}"}} 1.0' in page


@pytest.mark.parametrize("router", [("--sleep-idle-seconds", "2")], indirect=True)
async def test_polls_let_a_model_sleep_and_do_not_wake_it(router: Router, proxy: Proxy) -> None:
    async def sleeps() -> bool:
        listed = (await proxy.http.get("/v1/models")).json()["data"]
        return any(entry["status"]["value"] == "sleeping" for entry in listed)

    await ask(proxy.http, "tiny-a")
    await eventually(sleeps, 20)
    await asyncio.sleep(3)
    assert await sleeps()
    await ask(proxy.http, "tiny-a")
    assert router.loads == ["tiny-a"]


async def test_clients_read_slots_and_properties_of_a_model(router: Router, proxy: Proxy) -> None:
    await ask(proxy.http, "tiny-a")
    for path in ("/slots", "/props"):
        reply = await proxy.http.get(f"{path}?model=tiny-a")
        assert reply.status_code == 200, path
    refused = await proxy.http.get("/props?model=tiny-b&autoload=false")
    assert refused.status_code == 400
    assert router.loads == ["tiny-a"]
