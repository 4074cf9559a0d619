"""Fallbacks: other models serve what a model cannot, before a byte of a reply was sent, and never after it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.engine import STREAM_HEAD, Answer, Engine, answers_with, chunk, fails_with, hangs
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet
from support.live_proxy import Proxy
from support.waiting import eventually

CHAT = "/v1/chat/completions"
JSON = b"content-type: application/json\r\n"
TOO_LONG = {
    "llama.cpp": b'{"error":{"code":400,"message":"request (5024 tokens) exceeds the available context size '
    b'(2048 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":5024,"n_ctx":2048}}',
    "vLLM": b'{"error":{"message":"This model\'s maximum context length is 2048 tokens. However, your prompt contains '
    b'at least 2049 input tokens.","type":"BadRequestError","param":"input_tokens","code":400}}',
    "OpenAI": b'{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}',
}
FILE = """\
models:
  large:
    aliases: [gpt-4o]
    parameters: {{set: {{top_k: 1}}}}
    fallbacks: [small-fast, other]
    {more}
  small: {{}}
  small-fast:
    serves_as: small
    parameters: {{set: {{max_tokens: 9}}}}
"""
REPLY = answers_with(http_reply(b'{"object": "chat.completion"}', fields=JSON))


@dataclass
class Site:
    """Three engines with a model each, and a proxy."""

    large: Engine
    small: Engine
    other: Engine
    proxy: Proxy

    async def post(self, path: str = CHAT, **body: Any) -> httpx2.Response:
        return await self.proxy.http.post(path, json={"model": "large", "messages": [], **body})

    async def fallbacks(self) -> dict[tuple[str, ...], float]:
        """The counted fallbacks: model, fallback and reason."""
        page = (await self.proxy.http.get("/metrics")).text
        lines = [line for line in page.splitlines() if line.startswith("inference_proxy_fallbacks_total{")]
        found = [(dict(re.findall(r'(\w+)="(.*?)"', line)), float(line.split()[-1])) for line in lines]
        return {(labels["model"], labels["fallback"], labels["reason"]): count for labels, count in found}

    def served(self) -> list[int]:
        return [len(one.served) for one in (self.large, self.small, self.other)]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


async def start(
    fleet: Fleet, large: Answer, small: Answer = REPLY, *, more: str = "", slots: int | None = None, **settings: Any
) -> Site:
    engines = [
        await fleet.engine(
            answer, models=[{"id": name, "object": "model"}], owner="vllm" if slots is None else "llamacpp"
        )
        for name, answer in {"large": large, "small": small, "other": REPLY}.items()
    ]
    engines[0].slots = slots
    proxy = await fleet.proxy(*engines, fleet_file=FILE.format(more=more), **settings)
    large_engine, small_engine, other = engines
    return Site(large_engine, small_engine, other, proxy)


def sent_to(engine: Engine) -> dict[str, Any]:
    [request] = engine.served
    body: dict[str, Any] = json.loads(request.partition(b"\r\n\r\n")[2])
    return body


@pytest.mark.parametrize("name", ["large", "gpt-4o"])
async def test_a_model_without_a_working_backend_is_replaced_by_its_fallback(fleet: Fleet, name: str) -> None:
    site = await start(fleet, REPLY)
    await site.large.stop()
    reply = await site.post(model=name)
    assert (reply.status_code, reply.headers["x-fallback-model"]) == (200, "small-fast")
    assert reply.headers["x-backend"] == site.small.url
    assert sent_to(site.small) == {"model": "small", "messages": [], "max_tokens": 9}
    assert list(await site.fallbacks()) in (
        [("large", "small-fast", "failed")],
        [("large", "small-fast", "unavailable")],
    )


async def test_a_model_that_works_serves_its_own_requests(fleet: Fleet) -> None:
    site = await start(fleet, REPLY)
    reply = await site.post(model="gpt-4o")
    assert "x-fallback-model" not in reply.headers
    assert sent_to(site.large) == {"model": "large", "messages": [], "top_k": 1}
    assert (site.served(), await site.fallbacks()) == ([1, 0, 0], {})


async def test_the_next_fallback_follows_if_the_first_does_not_work_either(fleet: Fleet) -> None:
    site = await start(fleet, REPLY)
    await site.large.stop()
    await site.small.stop()
    reply = await site.post()
    assert (reply.status_code, reply.headers["x-fallback-model"]) == (200, "other")
    assert sent_to(site.other) == {"model": "other", "messages": []}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("engine", TOO_LONG)
async def test_a_prompt_that_is_too_long_for_the_model_goes_to_the_fallback(
    fleet: Fleet, engine: str, stream: bool
) -> None:
    site = await start(fleet, answers_with(http_reply(TOO_LONG[engine], 400, JSON)))
    reply = await site.post(stream=stream)
    assert (reply.status_code, reply.headers["x-fallback-model"]) == (200, "small-fast")
    assert await site.fallbacks() == {("large", "small-fast", "too_long"): 1}


async def test_a_prompt_that_is_too_long_for_all_models_gets_the_error_of_the_first_engine(fleet: Fleet) -> None:
    site = await start(fleet, answers_with(http_reply(TOO_LONG["vLLM"], 400, JSON)))
    site.small.answer = answers_with(http_reply(TOO_LONG["OpenAI"], 400, JSON))
    await site.other.stop()
    reply = await site.post()
    assert (reply.status_code, reply.content) == (400, TOO_LONG["vLLM"])
    assert "x-fallback-model" not in reply.headers
    assert reply.headers["content-type"] == "application/json"


async def test_another_error_about_the_request_is_the_engines_answer(fleet: Fleet) -> None:
    error = b'{"error":{"message":"temperature must be at most 2","code":400}}'
    site = await start(fleet, answers_with(http_reply(error, 400, JSON)))
    reply = await site.post()
    assert (reply.status_code, reply.content) == (400, error)
    assert site.served() == [1, 0, 0]


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_a_model_whose_engine_fails_is_replaced(fleet: Fleet, status: int) -> None:
    site = await start(fleet, fails_with(status))
    assert ((await site.post()).status_code, site.served()) == (200, [1, 1, 0])


@pytest.mark.parametrize("status", [401, 422, 501])
async def test_an_engine_that_answers_is_not_replaced(fleet: Fleet, status: int) -> None:
    site = await start(fleet, fails_with(status))
    assert ((await site.post()).status_code, site.served()) == (status, [1, 0, 0])


async def test_a_reply_that_has_begun_is_not_replaced(fleet: Fleet) -> None:
    async def breaks(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(b'data: {"choices":[]}\n\n'))
        connection.finish()

    site = await start(fleet, breaks)
    with pytest.raises(httpx2.RemoteProtocolError):
        await site.post(stream=True)
    assert site.served() == [1, 0, 0]


async def test_a_request_that_kills_two_engines_is_not_sent_to_a_third(fleet: Fleet) -> None:
    async def dies(connection: EngineConnection) -> None:
        connection.reset()

    site = await start(fleet, dies, dies)
    reply = await site.post()
    assert reply.status_code == 502
    assert site.served() == [1, 1, 0]


async def test_a_request_that_waits_too_long_goes_to_the_fallback(fleet: Fleet) -> None:
    site = await start(fleet, hangs, more="fallback_after_seconds: 0.3", slots=1, backend_queue_allowance=0)
    async with occupied(site):
        reply = await site.post()
        assert (reply.status_code, reply.headers["x-fallback-model"]) == (200, "small-fast")
        assert await site.fallbacks() == {("large", "small-fast", "waiting"): 1}


async def test_waiting_alone_is_no_reason_unless_the_file_says_so(fleet: Fleet) -> None:
    site = await start(fleet, hangs, slots=1, backend_queue_allowance=0, queue_timeout_seconds=0.5)
    async with occupied(site):
        reply = await site.post()
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_timeout")
        assert site.small.served == []


@asynccontextmanager
async def occupied(site: Site) -> AsyncIterator[None]:
    """While the only slot of the large model is in use."""
    async with asyncio.TaskGroup() as group:
        request = group.create_task(site.post())
        await eventually(lambda: site.large.served)
        yield
        request.cancel()


async def test_a_key_for_the_model_may_use_its_fallbacks(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("keys: [{name: alice, secret: sk-alice-0123456789abcdef, models: [large]}]\n")
    site = await start(fleet, REPLY, api_keys_file=str(file))
    await site.large.stop()
    site.proxy.http.headers["authorization"] = "Bearer sk-alice-0123456789abcdef"
    assert (await site.post()).headers["x-fallback-model"] == "small-fast"
    assert (await site.post(model="small-fast")).status_code == 403


async def test_the_access_log_shows_the_clients_name_and_the_fallback(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    site = await start(fleet, REPLY)
    await site.large.stop()
    await site.post()
    await site.proxy.stop()
    line = next(line for line in capsys.readouterr().out.splitlines() if CHAT in line)
    assert " model=small " in line
    assert line.endswith(" alias=large")


async def test_an_error_of_all_models_is_that_of_the_models_own_backends(fleet: Fleet) -> None:
    site = await start(fleet, REPLY)
    for engine in (site.large, site.small, site.other):
        await engine.stop()
    for _ in range(2):
        reply = await site.post()
        assert reply.status_code in (502, 503)
        assert "x-fallback-model" not in reply.headers
