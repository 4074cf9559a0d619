"""The demand for models, which an autoscaler reads from the metrics."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from support.engine import Engine
from support.fleet import Fleet
from support.live_proxy import Proxy
from support.ports import unused_url
from support.router import ScriptedRouter
from support.waiting import eventually

CHAT = "/v1/chat/completions"


async def demand(proxy: Proxy) -> dict[tuple[str, str], float]:
    """Requests by model and state, without those that are 0."""
    page = (await proxy.http.get("/metrics")).text
    return {
        (sample.labels["model"], sample.labels["state"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "inference_proxy_model_demand" and sample.value
    }


async def send(proxy: Proxy, model: str) -> asyncio.StreamWriter:
    _, writer = await proxy.connect()
    body = f'{{"model":"{model}"}}'
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    return writer


async def has(proxy: Proxy, expected: dict[tuple[str, str], float]) -> bool:
    return await demand(proxy) == expected


async def slow_engine(fleet: Fleet) -> Engine:
    engine = await fleet.engine()
    engine.freed.clear()
    return engine


async def test_requests_are_running_or_waiting(fleet: Fleet) -> None:
    engine = await slow_engine(fleet)
    capacity = f"backends: [{{url: '{engine.url}', capacity: 2}}]"
    proxy = await fleet.proxy(engine, backend_queue_allowance=0, fleet_file=capacity)
    writers = [await send(proxy, "m") for _ in range(3)]
    await eventually(lambda: has(proxy, {("m", "running"): 2, ("m", "waiting"): 1}))
    for writer in writers:
        writer.close()
    await eventually(lambda: has(proxy, {}))
    engine.freed.set()


async def test_every_model_of_the_fleet_has_samples_before_its_first_request(fleet: Fleet) -> None:
    proxy = await fleet.proxy(
        await fleet.engine(), unused_url(), fleet_file="models: {big: {serves_as: at-engines}, at-engines: {}}"
    )
    page = (await proxy.http.get("/metrics")).text
    for model in ("m", "at-engines"):
        for state in ("running", "waiting", "loading"):
            assert f'inference_proxy_model_demand{{model="{model}",state="{state}"}} 0.0' in page


async def test_requests_that_make_a_router_load_a_model_are_loading(fleet: Fleet) -> None:
    router = await fleet.stack.enter_async_context(ScriptedRouter())
    proxy = await fleet.proxy(router)
    writer = await send(proxy, "a")
    await eventually(lambda: has(proxy, {("a", "loading"): 1}))
    writer.close()
    await eventually(lambda: has(proxy, {}))
