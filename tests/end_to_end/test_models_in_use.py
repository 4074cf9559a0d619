"""Aliases and parameters of models with real llama.cpp servers and the official SDKs, through the real program."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import anthropic
import openai
import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

CHAT = "/v1/chat/completions"
MODELS = """\
default_model: short
models:
  one:
    aliases: [gpt-4o, "claude-*"]
    parameters:
      set: {max_tokens: 5}
      default: {temperature: 0}
  two:
    aliases: [o3]
  short:
    serves_as: two
    parameters: {set: {max_tokens: 2}, system_prompt: kin sol}
"""


@pytest.fixture(scope="module")
def servers(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(LlamaServer(tiny_model, "--alias", name)) for name in ("one", "two")]


@pytest.fixture(scope="module")
def fleet_file(servers: list[LlamaServer]) -> str:
    return (
        MODELS
        + "backends:\n"
        + "".join(f"  - {{url: {server.url}, accepts_unlisted_models: false}}\n" for server in servers)
    )


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, fleet_file: str) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "fleet.yaml").write_text(fleet_file)
    with Proxy(folder, [], BACKENDS="", CONFIG_FILE="fleet.yaml", METRICS_CACHE_TTL_SECONDS="1") as proxy:
        yield proxy


def test_openai_sdk_with_an_alias(proxy: Proxy, servers: list[LlamaServer]) -> None:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["short", "two", "one", "gpt-4o", "o3"]
        assert client.models.retrieve("gpt-4o").owned_by == "llamacpp"
        raw = client.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=[{"role": "user", "content": "kin"}], max_completion_tokens=50
        )
        answer = raw.parse()
        with client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "kin"}],
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            chunks = list(stream)
        response = client.responses.create(model="gpt-4o", input="kin", max_output_tokens=50)
        text = client.completions.create(model="o3", prompt="kin", max_tokens=3)
        with pytest.raises(openai.NotFoundError, match="Did you mean 'gpt-4o'"):
            client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "kin"}])
    assert raw.headers["x-backend"] == servers[0].url
    assert answer.model == "one"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert response.usage is not None
    assert response.usage.output_tokens == 5
    assert text.usage is not None
    assert text.usage.completion_tokens == 3


def test_anthropic_sdk_with_a_pattern(proxy: Proxy, servers: list[LlamaServer]) -> None:
    with anthropic.Anthropic(base_url=proxy.url, api_key="none", max_retries=0) as client:
        raw = client.messages.with_raw_response.create(
            model="claude-sonnet-5", max_tokens=50, messages=[{"role": "user", "content": "kin"}]
        )
        with client.messages.stream(
            model="claude-sonnet-5", max_tokens=50, messages=[{"role": "user", "content": "kin"}]
        ) as stream:
            streamed = stream.get_final_message()
        counted = client.messages.count_tokens(model="claude-x", messages=[{"role": "user", "content": "kin"}])
        assert [model.id for model in client.models.list()] == ["short", "two", "one", "gpt-4o", "o3"]
    assert raw.headers["x-backend"] == servers[0].url
    assert raw.parse().usage.output_tokens == streamed.usage.output_tokens == 5
    assert counted.input_tokens > 0


async def test_a_request_without_a_model_gets_the_default_with_its_parameters(
    proxy: Proxy, servers: list[LlamaServer]
) -> None:
    body = {"messages": [{"role": "user", "content": "mer"}]}
    reply = await send(proxy.url, CHAT, body)
    system = {"role": "system", "content": "kin sol"}
    direct = await send(servers[1].url, CHAT, {"messages": [system, *body["messages"]], "max_tokens": 2})
    assert reply.headers["x-backend"] == servers[1].url
    assert reply.json["usage"]["completion_tokens"] == 2
    assert reply.json["usage"]["prompt_tokens"] == direct.json["usage"]["prompt_tokens"]


async def test_aliases_have_the_context_length_of_their_model(proxy: Proxy) -> None:
    entries = {entry["id"]: entry for entry in (await send(proxy.url, "/v1/models")).json["data"]}
    assert entries["gpt-4o"]["meta"] == entries["one"]["meta"]
    assert entries["gpt-4o"]["meta"]["n_ctx"] > 0
    assert (await send(proxy.url, "/v1/models/claude-any")).json["meta"] == entries["one"]["meta"]


async def test_changed_rules_apply_at_once_and_hurt_no_stream(
    start_proxy: StartProxy, servers: list[LlamaServer], fleet_file: str, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(fleet_file.replace("max_tokens: 5", "max_tokens: 400"))
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file))
    async with Call(proxy.url, CHAT, chat(1000, stream=True) | {"model": "gpt-4o"}) as stream:
        stream.send()
        assert await stream.head() == 200
        assert (await send(proxy.url, CHAT, chat(50))).json["usage"]["completion_tokens"] == 2
        file.write_text(
            fleet_file.replace("[gpt-4o, ", "[gpt-5, ").replace("default_model: short", "default_model: gpt-5")
        )
        await eventually(lambda: has(proxy, "gpt-5"))
        assert (await send(proxy.url, CHAT, chat(50) | {"model": "gpt-5"})).json["usage"]["completion_tokens"] == 5
        assert (await send(proxy.url, CHAT, chat(50))).json["usage"]["completion_tokens"] == 5
        assert (await send(proxy.url, CHAT, chat(50) | {"model": "gpt-4o"})).status == 404
        events = [event async for event in _events(stream)]
    assert events[-1] == b"data: [DONE]\n\n"
    assert sum(b'"content":"' in event for event in events) > 300
    file.write_text(fleet_file.replace("aliases: [o3]", "aliases: [gpt-4o]"))
    await eventually(
        lambda: "models.two.aliases.0: gpt-4o is also an alias of one; the fleet is unchanged" in proxy.events
    )
    assert await has(proxy, "gpt-5")
    file.write_text(fleet_file[fleet_file.index("backends:") :])
    await eventually(lambda: "now apply to: no models" in proxy.events)
    body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "kin"}], "max_tokens": 7}).encode()
    assert (await send(proxy.url, CHAT, body)).json["usage"]["completion_tokens"] == 7


async def has(proxy: Proxy, name: str) -> bool:
    return (await send(proxy.url, f"/v1/models/{name}")).status == 200


async def _events(stream: Call) -> AsyncIterator[bytes]:
    while event := await stream.event():
        yield event


async def test_a_resumed_stream_carries_the_patched_body(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path, tmp_path: Path
) -> None:
    servers = start_servers(2, slow_model, "--alias", "slow", "--context", "4096")
    file = tmp_path / "fleet.yaml"
    urls = "".join(f"  - {{url: {server.url}, accepts_unlisted_models: false}}\n" for server in servers)
    rules = "models: {slow: {aliases: [gpt-4o], parameters: {set: {max_tokens: 150}, system_prompt: sol}}}\n"
    file.write_text(f"{rules}backends:\n{urls}")
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file), METRICS_CACHE_TTL_SECONDS="0.5")
    body = chat(1000, stream=True, stream_options={"include_usage": True}) | {"model": "gpt-4o"}
    async with Call(proxy.url, CHAT, body) as stream:
        stream.send()
        assert await stream.head() == 200
        events = [await stream.event() for _ in range(20)]
        next(server for server in servers if server.url == stream.headers["x-backend"]).kill()
        events += [event async for event in _events(stream)]
    assert any(event.startswith(b": resumed") for event in events)
    assert events[-1] == b"data: [DONE]\n\n"
    usage = json.loads(events[-2].removeprefix(b"data: "))["usage"]
    assert usage["completion_tokens"] == 150


async def test_all_workers_know_the_names(start_proxy: StartProxy, fleet_file: str, tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(fleet_file)
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file), WORKERS="2")
    replies = await asyncio.gather(*(send(proxy.url, CHAT, chat(50) | {"model": "gpt-4o"}) for _ in range(8)))
    assert {reply.json["usage"]["completion_tokens"] for reply in replies} == {5}
