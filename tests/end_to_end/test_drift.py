"""Replicas of one model that differ, with real llama.cpp servers: the difference appears and disappears."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from end_to_end.answer_stream import AnswerStream
from end_to_end.conftest import StartProxy, StartServers
from support.counters import counted
from support.dashboards import ADMIN_KEY, snapshot_of
from support.http_client import chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.tiny_gguf import ModelShape, write_tiny_gguf
from support.waiting import eventually

USUAL = ("--slots", "2", "--context", "8192", "--alias", "m")
QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.5", "SLOW_START_SECONDS": "0", "ADMIN_KEY": ADMIN_KEY}
METRIC = "backend_differences"

Restart = Callable[..., LlamaServer]


@pytest.fixture
def restart() -> Iterator[Restart]:
    """Ends a server, and starts another one at its port."""
    with ExitStack() as stack:

        def again(server: LlamaServer, model: Path, *options: str) -> LlamaServer:
            server.kill()
            return stack.enter_context(LlamaServer(model, *options, port=server.port))

        yield again


async def differing(proxy: Proxy) -> dict[str, list[str]]:
    """The values of each aspect in which backends differ, as /health shows them."""
    found = (await proxy.health())["differences"]
    return {one["aspect"]: [value["value"] for value in one["values"]] for one in found}


async def test_a_server_that_was_started_differently_is_shown_until_it_is_started_alike(
    start_proxy: StartProxy, start_servers: StartServers, restart: Restart, tiny_model: Path
) -> None:
    servers = await asyncio.to_thread(start_servers, 3, tiny_model, *USUAL)
    proxy = start_proxy(*servers, **QUICK)
    assert await differing(proxy) == {}

    options = ("--slots", "4", "--context", "4096", "--alias", "m")
    odd = await asyncio.to_thread(restart, servers[1], tiny_model, *options)
    await eventually(lambda: _differ(proxy, {"context": ["1,024"], "slots": ["4"]}))
    [context] = [one for one in (await proxy.health())["differences"] if one["aspect"] == "context"]
    assert context["values"] == [{"value": "1,024", "backends": [odd.url]}]
    assert (context["usual"], context["severity"]) == ("4,096", "warning")
    name = odd.url.removeprefix("http://")
    assert context["text"].startswith(f"{odd.url} has a context of 1,024 tokens for m; the others have")
    assert [await proxy.metric(METRIC, backend=odd.url, aspect=aspect) for aspect in ("context", "slots")] == [1, 1]

    odd = await asyncio.to_thread(restart, odd, tiny_model, *USUAL)
    await eventually(lambda: _differ(proxy, {}))
    assert f"proxy_{METRIC}{{" not in (await send(proxy.url, "/metrics")).body.decode()
    events = [event["text"] for event in (await snapshot_of(proxy))["events"] if event["kind"] == "drift"]
    assert any(text.startswith(f"{name} has a context of 1,024 tokens for m; the others have") for text in events)
    assert "The backends of m no longer differ in their context." in events


async def test_another_model_under_the_same_name_is_noticed_and_continues_no_stream(
    start_proxy: StartProxy, start_servers: StartServers, restart: Restart, slow_model: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    [one, other] = await asyncio.to_thread(start_servers, 2, slow_model, *USUAL)
    proxy = start_proxy(one, other, **QUICK)
    other = await asyncio.to_thread(restart, other, slow_model, *USUAL, "--chat-template", str(template))
    await eventually(lambda: _differs_in(proxy, {"template"}))

    stream = AnswerStream()
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.read(proxy.url, "/v1/chat/completions", chat(400, stream=True, model="m")))
        await eventually(lambda: len(stream.events) > 5)
        serving = next(server for server in (one, other) if server.url == stream.backend)
        serving.kill()
    assert await counted(proxy, "inference_proxy_stream_resume_refusals_total") == {"no_other_backend": 1}

    third = await asyncio.to_thread(write_tiny_gguf, tmp_path / "other.gguf", ModelShape(seed=1, layers=3))
    await asyncio.to_thread(restart, serving, third, *USUAL)
    await eventually(lambda: _differs_in(proxy, {"weights", "template"}, {"weights"}))


async def _differ(proxy: Proxy, expected: dict[str, list[str]]) -> bool:
    return await differing(proxy) == expected


async def _differs_in(proxy: Proxy, *expected: set[str]) -> bool:
    return set(await differing(proxy)) in expected
