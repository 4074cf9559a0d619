"""Ollama and LM Studio behind the proxy: requests go where a model is loaded, and no model is unloaded in mid-answer.

The engines are scripts over real sockets, after their documents: neither can be installed from a package registry.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.fakes.engine import EngineConnection, http_reply
from support.live_proxy import Proxy, live_proxy
from support.router import ScriptedRouter
from support.waiting import eventually

CHAT = "/v1/chat/completions"


def page(value: object, status: int = 200) -> bytes:
    return http_reply(json.dumps(value).encode(), status, b"content-type: application/json\r\n")


class ScriptedLMStudio(ScriptedRouter):
    """LM Studio with *Only Keep Last JIT Loaded Model*, its default. It breaks answers of the model that it unloads.

    Attributes:
        unexpected: paths that it was asked for and does not have.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.unexpected: list[str] = []

    def _page(self, target: str) -> bytes:
        if target == "/v1/models":
            listed = [{"id": name, "object": "model", "owned_by": "organization_owner"} for name in self.names]
            return page({"data": listed, "object": "list"})
        if target == "/api/v1/models":
            return page({"models": [{"key": name, "loaded_instances": self._instances(name)} for name in self.names]})
        if target == "/lmstudio-greeting":
            return page({"lmstudio": True})
        self.unexpected.append(target)
        return page({"error": f"Unexpected endpoint or method. (GET {target})"})

    def _instances(self, name: str) -> list[dict[str, Any]]:
        config = {"context_length": 4096, "parallel": self._slots}
        return [{"id": name, "config": config}] if self.has_loaded(name) else []


class ScriptedOllama(ScriptedRouter):
    """Ollama with the models ``a:latest`` and ``b:latest``. ``/api/ps`` hangs while one is loaded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(("a:latest", "b:latest"), **options)

    async def _answer(self, connection: EngineConnection, name: str) -> None:
        await super()._answer(connection, name if ":" in name else f"{name}:latest")

    def _page(self, target: str) -> bytes:
        if target == "/":
            return http_reply(b"Ollama is running")
        if target == "/api/version":
            return page({"version": "0.33.0"})
        if target == "/v1/models":
            return page({"data": [{"id": name, "object": "model", "owned_by": "library"} for name in self.names]})
        if target == "/api/tags":
            return page({"models": [{"model": name, "digest": name} for name in self.names]})
        if target == "/api/ps":
            if self.is_loading:
                return b""
            loaded = [name for name in self.names if self.has_loaded(name)]
            return page({"models": [{"model": name, "digest": name, "context_length": 4096} for name in loaded]})
        return page({"error": "not found"}, 404)


async def ask(proxy: Proxy, name: str) -> str:
    """Send one request; returns the address of the engine that answered it."""
    reply = await proxy.http.post(CHAT, json={"model": name, "messages": [{"role": "user", "content": "hi"}]})
    assert (reply.status_code, reply.json()["model"].removesuffix(":latest")) == (200, name), reply.text
    return reply.headers["x-backend"]


def count(engine: ScriptedRouter, path: str) -> int:
    """How often the engine was asked for ``path``."""
    return sum(request.startswith(f"GET {path} ".encode()) for request in engine.requests)


async def ask_in_turn(proxy: Proxy) -> None:
    """Forty requests for two models, one after the other, that do not wait for each other's answers."""
    async with asyncio.TaskGroup() as group:
        for at in range(40):
            group.create_task(ask(proxy, "ab"[at % 2]))
            await asyncio.sleep(0.005)


async def model_states(proxy: Proxy, url: str) -> dict[str, Any]:
    found: dict[str, Any] = (await proxy.details())[url]["model_states"]
    return found


async def test_lm_studio_unloads_no_model_that_answers() -> None:
    async with (
        ScriptedLMStudio() as studio,
        live_proxy(studio.url, refresh_seconds=0.1, model_swap_wait_seconds=5) as proxy,
    ):
        await ask_in_turn(proxy)
    assert studio.broken == 0
    assert len(studio.loads) <= 6


async def test_without_turns_lm_studio_breaks_answers() -> None:
    """What the test above would see without them: the operator says that both models fit, and they do not."""
    file = "backends: [{{url: '{url}', max_loaded_models: 2}}]"
    async with ScriptedLMStudio() as studio, live_proxy(studio.url, fleet_file=file.format(url=studio.url)) as proxy:
        with pytest.raises(ExceptionGroup):
            await ask_in_turn(proxy)
    assert studio.broken > 0


async def test_lm_studio_is_asked_only_for_paths_that_it_has() -> None:
    async with ScriptedLMStudio() as studio, live_proxy(studio.url, refresh_seconds=0.05) as proxy:
        await ask(proxy, "a")
        before = count(studio, "/api/v1/models")
        await eventually(lambda: count(studio, "/api/v1/models") >= before + 3)
    assert [path for path in studio.unexpected if path != "/"] == []  # Ollama's mark may be looked for


async def test_a_long_load_adds_no_errors_to_the_log_of_lm_studio() -> None:
    async with (
        ScriptedLMStudio(load_seconds=3600) as studio,
        live_proxy(studio.url) as proxy,
        asyncio.TaskGroup() as group,
    ):
        asked = count(studio, "/v1/models")
        request = group.create_task(ask(proxy, "a"))
        await eventually(lambda: count(studio, "/v1/models") >= asked + 2)  # whether it works, as nothing comes
        request.cancel()
    assert "/health" not in studio.unexpected


async def test_requests_go_to_the_ollama_that_has_the_model_in_memory() -> None:
    async with ScriptedOllama(most=2) as cold, ScriptedOllama(most=2) as warm:
        warm.load("a:latest")
        await eventually(lambda: warm.has_loaded("a:latest"))
        async with live_proxy(cold.url, warm.url) as proxy:
            assert {await ask(proxy, "a") for _ in range(8)} == {warm.url}
    assert (cold.loads, warm.loads) == ([], ["a:latest"])


async def test_while_an_ollama_loads_a_model_it_stays_usable() -> None:
    async with ScriptedOllama(most=2, load_seconds=3600) as ollama:
        async with live_proxy(ollama.url, refresh_seconds=0.1) as proxy:
            await eventually(lambda: count(ollama, "/api/ps") >= 1)
            ollama.load("a:latest")
            before = count(ollama, "/api/ps")
            await eventually(lambda: count(ollama, "/api/ps") >= before + 2)
            assert await proxy.state(ollama) == "up"
            assert {one["status"] for one in (await model_states(proxy, ollama.url)).values()} == {"unloaded"}
