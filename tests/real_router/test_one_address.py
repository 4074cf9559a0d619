"""A chat server, an embedding server and a router with two models behind one address, used with two SDKs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, NotFoundError

from real_router.servers import Router, Server, is_up
from support.program import Proxy, program
from support.waiting import eventually

BACKENDS = """\
backends:
  - {{url: "{chat}", accepts_unlisted_models: false}}
  - {{url: "{embed}", accepts_unlisted_models: false}}
  - {{url: "{router}"}}
"""
MODELS = """\
default_model: chat
models:
  chat:
    aliases: [gpt-4o, "claude-*"]
    parameters: {default: {temperature: 0}, set: {max_tokens: 12}, system_prompt: Answer briefly.}
  chat-short:
    serves_as: chat
    parameters: {set: {max_tokens: 3}}
  embed: {aliases: [text-embedding-3-small]}
  tiny-b: {aliases: [small]}
"""
HELLO: Any = {"role": "user", "content": "hello"}


@pytest.fixture
def chat_server(router: Router, tmp_path: Path, tiny_model: Path) -> Iterator[Server]:
    server = Server(tmp_path / "chat.log", "-m", str(tiny_model), "--alias", "chat")
    yield server
    server.stop()


@pytest.fixture
def embedding_server(router: Router, tmp_path: Path, tiny_model: Path) -> Iterator[Server]:
    options = ("-m", str(tiny_model), "--alias", "embed", "--embeddings", "--pooling", "mean")
    server = Server(tmp_path / "embed.log", *options)
    yield server
    server.stop()


@pytest.fixture
async def proxy(tmp_path: Path, router: Router, chat_server: Server, embedding_server: Server) -> AsyncIterator[Proxy]:
    servers = {"chat": chat_server.url, "embed": embedding_server.url, "router": router.url}
    for server in (chat_server, embedding_server, router):
        await eventually(partial(is_up, server.url), 120)
    (tmp_path / "fleet.yaml").write_text(BACKENDS.format(**servers) + MODELS)
    settings = {"METRICS_CACHE_TTL_SECONDS": "0.5", "MODEL_SWAP_WAIT_SECONDS": "1"}
    async with program(tmp_path, CONFIG_FILE="fleet.yaml", BACKENDS="", **settings) as started:
        yield started


@pytest.fixture
async def openai(proxy: Proxy) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", timeout=120, max_retries=0) as client:
        yield client


@pytest.fixture
async def anthropic(proxy: Proxy) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=proxy.url, api_key="none", timeout=120, max_retries=0) as client:
        yield client


async def test_the_list_has_all_models_and_the_aliases_that_are_names(openai: AsyncOpenAI) -> None:
    listed = {model.id async for model in openai.models.list()}
    assert listed == {
        "chat", "gpt-4o", "chat-short", "embed", "text-embedding-3-small", "tiny-a", "tiny-b", "small",
    }  # fmt: skip
    assert (await openai.models.retrieve("gpt-4o")).id == "gpt-4o"


@pytest.mark.parametrize(
    ("name", "model", "tokens"),
    [("gpt-4o", "chat", 12), ("chat", "chat", 12), ("chat-short", "chat", 3), ("tiny-a", "tiny-a", 20),
     ("small", "tiny-b", 20)],
)  # fmt: skip
async def test_each_name_gets_its_model_with_its_parameters(
    openai: AsyncOpenAI, anthropic: AsyncAnthropic, name: str, model: str, tokens: int
) -> None:
    fields = {"ignore_eos": True}
    whole = await openai.chat.completions.create(model=name, messages=[HELLO], max_tokens=20, extra_body=fields)
    assert whole.usage is not None
    assert (whole.model, whole.usage.completion_tokens) == (model, tokens)

    streamed = await openai.chat.completions.create(
        model=name, messages=[HELLO], max_tokens=20, extra_body=fields, stream=True
    )
    chunks = [chunk async for chunk in streamed]
    assert {chunk.model for chunk in chunks} == {model}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    message = await anthropic.messages.create(model=name, messages=[HELLO], max_tokens=20, extra_body=fields)
    assert (message.model, message.usage.output_tokens) == (model, tokens)


async def test_any_claude_model_is_the_chat_model(anthropic: AsyncAnthropic) -> None:
    fields = {"ignore_eos": True}
    asked = anthropic.messages.stream(model="claude-of-any-kind", messages=[HELLO], max_tokens=20, extra_body=fields)
    async with asked as stream:
        text = "".join([text async for text in stream.text_stream])
        message = await stream.get_final_message()
    assert (message.usage.output_tokens, [getattr(block, "text", "") for block in message.content]) == (12, [text])


async def test_embeddings_come_from_the_embedding_server(
    proxy: Proxy, openai: AsyncOpenAI, embedding_server: Server
) -> None:
    asked = await openai.embeddings.with_raw_response.create(model="text-embedding-3-small", input=["one", "two"])
    assert asked.headers["x-backend"] == embedding_server.url
    vectors = [item.embedding for item in asked.parse().data]
    assert len(vectors) == 2
    assert any(vectors[0])
    assert vectors[0] != vectors[1]


async def test_an_unknown_model_gets_a_suggestion(openai: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError, match="gpt-4o"):
        await openai.chat.completions.create(model="gpt-4", messages=[HELLO])


async def test_all_models_serve_at_the_same_time(
    openai: AsyncOpenAI, anthropic: AsyncAnthropic, router: Router
) -> None:
    async def ask(name: str) -> str:
        reply = await openai.chat.completions.create(model=name, messages=[HELLO], max_tokens=50)
        return reply.model

    async def ask_anthropic(name: str) -> str:
        return (await anthropic.messages.create(model=name, messages=[HELLO], max_tokens=50)).model

    async def embed(name: str) -> str:
        return (await openai.embeddings.create(model=name, input="text")).model

    names = ["gpt-4o", "tiny-a", "small", "claude-of-any-kind"] * 10
    async with asyncio.TaskGroup() as group:
        answers = [group.create_task((ask, ask_anthropic)[at % 3 == 0](name)) for at, name in enumerate(names)]
        embeddings = [group.create_task(embed("embed")) for _ in range(10)]
    assert [answer.result() for answer in answers] == ["chat", "tiny-a", "tiny-b", "chat"] * 10
    assert {one.result() for one in embeddings} == {"embed"}
    assert len(router.loads) <= 10  # for 20 requests
