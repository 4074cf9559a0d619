"""docs/moving-from-llama-swap.md: this proxy with its blocks of the page, before real and scripted engines."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
import yaml

from moving.conftest import StartEngines, StartProxy
from moving.pages import blocks, page, pointed_at
from moving.programs import ask, content
from support.engine import Engine
from support.http_client import chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.router import ScriptedRouter

PAGE = page("moving-from-llama-swap")
(ASK,) = (one for one in blocks(PAGE, "bash") if one.startswith("curl "))
SAME, TURNS, IN_FRONT = blocks(PAGE, "yaml", "fleet.yaml")
KEY = yaml.safe_load(SAME)["settings"]["API_KEYS"].partition(":")[2]
HEADERS = {"Authorization": f"Bearer {KEY}"}
UNLOADED = {"value": "unloaded"}
NAMES = ("qwen3-14b", "qwen3-4b", "qwen3-14b")


def addresses(engines: list[LlamaServer]) -> dict[str, str]:
    documented = ("127.0.0.1:8081", "127.0.0.1:8082", "llm-3:8080")
    return {name: f"127.0.0.1:{engine.port}" for name, engine in zip(documented, engines, strict=True)}


def test_the_request_of_the_page_is_answered_with_the_parameters_of_the_file(
    start_engines: StartEngines, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(pointed_at(SAME, addresses(start_engines(*NAMES))))
    first, second = ask(ASK, proxy.url), ask(ASK, proxy.url)
    assert content(first) == content(second)  # a temperature of 0 in place of 1.5
    assert first["usage"]["completion_tokens"] == 12


async def test_names_keys_and_models_are_checked(start_engines: StartEngines, start_proxy: StartProxy) -> None:
    proxy = start_proxy(pointed_at(SAME, addresses(start_engines(*NAMES))))
    listed = (await send(proxy.url, "/v1/models", headers=HEADERS)).json["data"]
    assert {model["id"] for model in listed} == {"qwen3-14b", "qwen3-4b"}
    for name, status in {"gpt-4o-mini": 200, "qwen3-4b": 200, "qwen3": 404}.items():
        assert (await proxy.post(body=chat(model=name), **HEADERS)).status == status
    assert (await proxy.post(body=chat(model="qwen3-4b"))).status == 401


async def test_the_peer_takes_the_overflow_and_then_everything(
    start_engines: StartEngines, start_proxy: StartProxy
) -> None:
    engines = start_engines(*NAMES)
    proxy = start_proxy(pointed_at(SAME, addresses(engines)))
    for _ in range(8):
        assert (await proxy.post(body=chat(model="coder"), **HEADERS)).headers["x-backend"] == engines[0].url
    body = chat(2000, model="coder", ignore_eos=True)
    replies = await asyncio.gather(*(proxy.post(body=body, **HEADERS) for _ in range(6)))
    assert {reply.headers["x-backend"] for reply in replies} == {engines[0].url, engines[2].url}

    engines[0].kill()
    reply = await proxy.post(body=chat(model="coder"), **HEADERS)
    assert (reply.status, reply.headers["x-backend"]) == (200, engines[2].url)


async def test_models_that_take_turns_are_all_answered(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with ScriptedRouter(("qwen3-14b", "qwen3-4b"), answer_seconds=0.05) as router:
        folder = tmp_path_factory.mktemp("turns")
        (folder / "fleet.yaml").write_text(pointed_at(TURNS, {"127.0.0.1:8080": router.url.removeprefix("http://")}))
        proxy = await asyncio.to_thread(Proxy, folder, [], CONFIG_FILE="fleet.yaml", MODEL_SWAP_WAIT_SECONDS="0.2")
        names = ["qwen3-14b", "qwen3-4b"] * 8
        try:
            replies = await asyncio.gather(*(proxy.post(body=chat(model=name)) for name in names))
        finally:
            await asyncio.to_thread(proxy.stop)
    assert [reply.json["model"] for reply in replies] == names
    assert router.broken == 0
    assert len(router.loads) < len(names) / 2


async def test_an_instance_of_llama_swap_gets_its_models_and_no_control(start_proxy: StartProxy) -> None:
    """Engines that list models as llama-swap does (``internal/server/api.go``, August 2026) stand for it."""
    names = ("qwen3-14b", "qwen3-4b")
    async with AsyncExitStack() as stack:
        instances = [
            await stack.enter_async_context(Engine(owner="llama-swap", models=[{"id": name, "status": UNLOADED}]))
            for name in names
        ]
        documented = ("llama-swap-1:8080", "llama-swap-2:8080")
        replaced = {
            name: engine.url.removeprefix("http://") for name, engine in zip(documented, instances, strict=True)
        }
        proxy = await asyncio.to_thread(start_proxy, pointed_at(IN_FRONT, replaced))
        for engine, name in zip(instances, names, strict=True):
            reply = await proxy.post(body=chat(model=name))
            assert (reply.status, reply.headers["x-backend"]) == (200, engine.url)
            asked = {target for method, target, _ in engine.asked if method == "GET"}
            assert asked == {"/health", "/v1/models"}
        for path in ("/unload", "/upstream/qwen3-14b/props", "/api/models/unload", "/logs", "/running"):
            assert (await send(proxy.url, path)).status == 403
        await asyncio.to_thread(proxy.stop)
