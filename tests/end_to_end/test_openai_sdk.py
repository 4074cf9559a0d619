"""The official OpenAI SDK works with the proxy as it does with OpenAI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

QUESTION: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "kin sol mer"}]
TOO_LONG: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "kin " * 6000}]


@pytest.fixture
def client(shared_proxy: Proxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared_proxy.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(shared_proxy: Proxy) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{shared_proxy.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="any", messages=QUESTION, max_tokens=7)

    assert answer.usage
    assert answer.usage.completion_tokens == 7
    assert answer.choices[0].message.content


async def test_chat_async(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(model="any", messages=QUESTION, max_tokens=7)

    assert answer.usage
    assert answer.usage.completion_tokens == 7


def test_stream_with_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="any", messages=QUESTION, max_tokens=20, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = list(stream)

    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 20
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage
    assert last.usage.completion_tokens == 20


async def test_async_stream(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(model="any", messages=QUESTION, max_tokens=20, stream=True)
    async with stream:
        contents = [chunk.choices[0].delta.content async for chunk in stream]

    assert sum(map(bool, contents)) == 20


def test_text_completion(client: openai.OpenAI) -> None:
    assert client.completions.create(model="any", prompt="kin", max_tokens=5).choices[0].text


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data

    assert model.owned_by == "llamacpp"


def test_unknown_path_is_the_engines_404(client: openai.OpenAI, shared_server: LlamaServer) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.post("/nothing-here", cast_to=object, body={})

    assert raised.value.response.headers["x-backend"] == shared_server.url


async def test_context_overflow_is_answered_by_the_engine_byte_for_byte(
    client: openai.OpenAI, shared_server: LlamaServer
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="any", messages=TOO_LONG)

    body = {"model": "any", "messages": TOO_LONG}
    direct = await send(shared_server.url, "/v1/chat/completions", body)
    assert raised.value.response.content == direct.body
    assert raised.value.type == "exceed_context_size_error"


def test_501_of_the_engine_is_relayed(client: openai.OpenAI, shared_server: LlamaServer) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        client.embeddings.create(model="any", input="kin")

    assert raised.value.status_code == 501
    assert raised.value.response.headers["x-backend"] == shared_server.url


def test_blocked_path_is_403_of_the_proxy(client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="BLOCKED_PATHS") as raised:
        client.post("/load_lora_adapter", cast_to=object, body={})

    assert raised.value.code == "path_blocked"
    assert raised.value.request_id == raised.value.response.headers["x-request-id"]


async def test_sdk_does_not_retry_after_a_timeout_of_the_proxy(
    start_servers: StartServers, start_proxy: StartProxy, tiny_model: Path
) -> None:
    (server,) = start_servers(1, tiny_model)
    proxy = start_proxy(server, BACKEND_TIMEOUT_SECONDS="1", METRICS_CACHE_TTL_SECONDS="60")
    server.freeze()
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="any", messages=QUESTION)

    assert caught.value.status_code == 504
    await eventually(lambda: [line.status for line in proxy.access_lines] == [504])
