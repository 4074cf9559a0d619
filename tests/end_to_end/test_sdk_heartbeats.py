"""The SDKs of OpenAI and Anthropic wait for a stream as long as it has heartbeats, and notice an error after them.

``clients/test_heartbeats.py`` has the same for Node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from end_to_end.slow_engine import ERROR, TEXT, SlowEngine
from support.program import Proxy

ENGINE_SECONDS = 3.0
CLIENT_SECONDS = 1.5  # longest silence that the client allows
OFTEN = {"STREAM_HEARTBEAT_SECONDS": "0.1"}  # at each check of the deadlines, which is every 0.25 s
QUESTION: list[Any] = [{"role": "user", "content": "kin"}]

Headers = Any
Ask = Callable[[str], tuple[str, Headers]]


@asynccontextmanager
async def proxy_of(folder: Path, engine: SlowEngine, **settings: str) -> AsyncIterator[Proxy]:
    async with engine:
        with await asyncio.to_thread(Proxy, folder, [engine.url], **(OFTEN | settings)) as proxy:
            yield proxy
            await asyncio.to_thread(proxy.stop)


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=CLIENT_SECONDS, max_retries=0)


def anthropic_client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", timeout=CLIENT_SECONDS, max_retries=0)


def openai_chat(url: str) -> tuple[str, Headers]:
    with openai_client(url) as client:
        stream = client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream), stream.response.headers


def openai_completion(url: str) -> tuple[str, Headers]:
    with openai_client(url) as client:
        stream = client.completions.create(model="m", prompt="kin", stream=True)
        return "".join(chunk.choices[0].text for chunk in stream), stream.response.headers


def openai_response(url: str) -> tuple[str, Headers]:
    with openai_client(url) as client:
        stream = client.responses.create(model="m", input="kin", stream=True)
        return "".join(event.delta for event in stream if event.type == "response.output_text.delta"), (
            stream.response.headers
        )


def openai_chat_async(url: str) -> tuple[str, Headers]:
    async def ask() -> tuple[str, Headers]:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", timeout=CLIENT_SECONDS, max_retries=0
        ) as client:
            stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream]), stream.response.headers

    return asyncio.run(ask())


def anthropic_events(url: str) -> tuple[str, Headers]:
    with anthropic_client(url) as client:
        stream = client.messages.create(model="m", messages=QUESTION, max_tokens=9, stream=True)
        deltas = [event.delta for event in stream if event.type == "content_block_delta"]
        return "".join(delta.text for delta in deltas if delta.type == "text_delta"), stream.response.headers


def anthropic_text(url: str) -> tuple[str, Headers]:
    with anthropic_client(url) as client, client.messages.stream(model="m", messages=QUESTION, max_tokens=9) as stream:
        return "".join(stream.text_stream), stream.response.headers


OPENAI = [openai_chat, openai_completion, openai_response, openai_chat_async]
ANTHROPIC = [anthropic_events, anthropic_text]
ALL = [*OPENAI, *ANTHROPIC]


@pytest.mark.parametrize("ask", ALL)
async def test_heartbeats_keep_a_client_waiting(tmp_path: Path, ask: Ask) -> None:
    async with proxy_of(tmp_path, SlowEngine(ENGINE_SECONDS)) as proxy:
        text, headers = await asyncio.to_thread(ask, proxy.url)
    assert text == TEXT
    assert "x-backend" not in headers  # the reply began before the backend answered


@pytest.mark.parametrize("ask", [openai_chat, anthropic_events])
async def test_without_heartbeats_the_same_client_gives_up(tmp_path: Path, ask: Ask) -> None:
    async with proxy_of(tmp_path, SlowEngine(ENGINE_SECONDS), STREAM_HEARTBEAT_SECONDS="0") as proxy:
        with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
            await asyncio.to_thread(ask, proxy.url)


@pytest.mark.parametrize("status", [400, 429, 500])
@pytest.mark.parametrize("ask", OPENAI)
async def test_the_openai_sdk_raises_an_error_after_heartbeats(tmp_path: Path, ask: Ask, status: int) -> None:
    async with proxy_of(tmp_path, SlowEngine(1, status)) as proxy:
        with pytest.raises(openai.APIError, match=ERROR) as caught:
            await asyncio.to_thread(ask, proxy.url)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == status
    assert not isinstance(caught.value, openai.APIStatusError)  # status 200 was sent with the first heartbeat


@pytest.mark.parametrize("status", [400, 429, 500])
@pytest.mark.parametrize("ask", ANTHROPIC)
async def test_the_anthropic_sdk_raises_an_error_after_heartbeats(tmp_path: Path, ask: Ask, status: int) -> None:
    async with proxy_of(tmp_path, SlowEngine(1, status)) as proxy:
        with pytest.raises(anthropic.APIStatusError, match=ERROR) as caught:
            await asyncio.to_thread(ask, proxy.url)
    assert caught.value.status_code == 200
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("ask", [openai_chat, openai_response, anthropic_events])
async def test_an_error_of_the_proxy_after_heartbeats_is_raised(tmp_path: Path, ask: Ask) -> None:
    async with proxy_of(tmp_path, SlowEngine(60), BACKEND_FIRST_BYTE_TIMEOUT_SECONDS="1") as proxy:
        with pytest.raises((openai.APIError, anthropic.APIError), match="did not answer in time"):
            await asyncio.to_thread(ask, proxy.url)
