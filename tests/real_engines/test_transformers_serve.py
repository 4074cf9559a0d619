"""Two real ``transformers serve`` with the same tiny model, and the proxy in front of them.

``TRANSFORMERS_PYTHON`` names a Python that has ``transformers[serving]``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from real_engines.engine_process import EngineProcess, running, write_model
from support.http_client import Call
from support.program import Proxy, program
from support.waiting import eventually

pytestmark = pytest.mark.skipif(
    "TRANSFORMERS_PYTHON" not in os.environ, reason="TRANSFORMERS_PYTHON names no Python with transformers[serving]"
)

CHAT = "/v1/chat/completions"
ONE_AT_A_TIME = """
backends:
  - {url: %s, capacity: 1}
  - {url: %s, capacity: 1}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(os.environ["TRANSFORMERS_PYTHON"], "chat", tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module")
def started(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EngineProcess]]:
    transformers = Path(os.environ["TRANSFORMERS_PYTHON"]).parent / "transformers"
    serve = f"{transformers} serve {model} --device cpu --host 127.0.0.1 --port"
    with running(2, lambda port: [*serve.split(), str(port)], tmp_path_factory.mktemp("engines")) as engines:
        yield engines


@pytest.fixture
async def proxy(engines: list[EngineProcess], tmp_path: Path) -> AsyncIterator[Proxy]:
    (tmp_path / "fleet.yaml").write_text(ONE_AT_A_TIME % tuple(engine.url for engine in engines))
    settings = {"METRICS_CACHE_TTL_SECONDS": "1", "CONFIG_FILE": "fleet.yaml"}
    async with program(tmp_path, *engines, **settings) as running_proxy:
        for engine in engines:
            await running_proxy.becomes(engine, "up")
        yield running_proxy


def chat(model: Path, max_tokens: int = 8, **members: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": max_tokens,
        **members,
    }


async def test_they_are_identified_with_their_model(proxy: Proxy, model: Path) -> None:
    for detail in (await proxy.details()).values():
        assert (detail["engine"], detail["models"], detail["slots"]) == ("transformers", [str(model)], 1)
        assert detail["processing"] is None


async def test_a_reply_comes_through_with_its_usage(proxy: Proxy, model: Path) -> None:
    reply = await proxy.post(CHAT, chat(model))
    assert (reply.status, reply.complete) == (200, True)
    usage = reply.json["usage"]
    assert usage["completion_tokens"] == 8

    async def is_counted() -> bool:
        return bool(await proxy.metric("prompt_tokens_total", model=str(model)) == usage["prompt_tokens"])

    await eventually(is_counted)


async def test_a_stream_without_done_is_whole_and_its_usage_is_counted(proxy: Proxy, model: Path) -> None:
    reply = await proxy.post(CHAT, chat(model, stream=True))
    events = [line.removeprefix("data: ") for line in reply.body.decode().splitlines() if line]
    assert reply.complete
    assert "[DONE]" not in events
    last = json.loads(events[-1])
    assert (last["choices"][0]["finish_reason"], last["usage"]["completion_tokens"]) == ("length", 8)

    async def is_counted() -> bool:
        return await proxy.metric("output_tokens_total", model=str(model)) == 8

    await eventually(is_counted)
    await eventually(lambda: [line.outcome for line in proxy.access_lines if line.path == CHAT] == ["complete"])


async def test_openais_sdk_reads_a_stream_to_its_end(proxy: Proxy, model: Path) -> None:
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model=str(model), messages=[{"role": "user", "content": "hello"}], max_tokens=8, stream=True
        )
        finished = [chunk.choices[0].finish_reason async for chunk in stream]
    assert finished[-1] == "length"


async def test_a_waiting_stream_begins_with_its_role_and_continues_in_its_turn(
    engines: list[EngineProcess], model: Path
) -> None:
    """So ``capacity: 1`` is right, and the first event says nothing about the turn."""
    arrived: list[str] = []

    async def read(call: Call, name: str) -> None:
        while await call.event():
            arrived.append(name)

    async with (
        Call(engines[0].url, CHAT, chat(model, 600, stream=True)) as first,
        Call(engines[0].url, CHAT, chat(model, 4, stream=True)) as second,
    ):
        for call in (first, second):
            call.send()
            assert await call.head() == 200
            assert b'"role":"assistant"' in await call.event()
        await asyncio.gather(read(first, "first"), read(second, "second"))
    assert arrived.index("second") >= arrived.count("first") - 2 > 10  # the last two may be on their way


async def test_requests_are_spread_evenly(proxy: Proxy, engines: list[EngineProcess], model: Path) -> None:
    replies = await asyncio.gather(*(proxy.post(CHAT, chat(model, 100)) for _ in range(12)))
    assert {reply.status for reply in replies} == {200}
    answered = Counter(reply.headers["x-backend"] for reply in replies)
    assert min(answered[engine.url] for engine in engines) >= 3


async def test_a_name_that_it_does_not_list_never_reaches_it(proxy: Proxy, model: Path) -> None:
    reply = await proxy.post(CHAT, chat(model) | {"model": "nobody/has-this"})
    assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/load_model", "/reset"])
async def test_clients_cannot_control_it(proxy: Proxy, path: str) -> None:
    assert (await proxy.post(path, {"model": "x"})).status == 403


async def test_no_request_is_lost_when_one_is_killed(proxy: Proxy, engines: list[EngineProcess], model: Path) -> None:
    """The last test: one engine stays dead."""
    dead, alive = engines

    async def both_work() -> bool:
        return all([(await proxy.backend(engine))["requests_in_flight"] for engine in engines])

    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(proxy.post(CHAT, chat(model, 150))) for _ in range(8)]
        await eventually(both_work)
        dead.kill()
    replies = [request.result() for request in requests]
    assert {reply.status for reply in replies} == {200}
    assert {reply.json["usage"]["completion_tokens"] for reply in replies} == {150}
    await proxy.becomes(dead, "down")
    assert (await proxy.post(CHAT, chat(model, stream=True))).headers["x-backend"] == alive.url
