"""Every client notices that a stream is incomplete when its engine has died."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from end_to_end.broken_stream import TEXT, DyingEngine
from support.program import Proxy

OPENAI_QUESTION: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "kin"}]
ANTHROPIC_QUESTION: list[anthropic.types.MessageParam] = [{"role": "user", "content": "kin"}]
BROKEN = {"http1.1": 18, "http1.0": 56}
"""curl's exit codes for a partial file and for a reset connection."""


async def in_front_of_a_dying_engine(folder: Path, *, inside: bool) -> AsyncIterator[Proxy]:
    async with DyingEngine(inside=inside) as engine:
        with await asyncio.to_thread(Proxy, folder, [engine.url]) as proxy:
            yield proxy
            await asyncio.to_thread(proxy.stop)
            assert [(line.status, line.outcome) for line in proxy.access_lines] == [(200, "broken")]


@pytest.fixture
async def between(tmp_path: Path) -> AsyncIterator[Proxy]:
    """In front of an engine that dies between two events."""
    async for proxy in in_front_of_a_dying_engine(tmp_path, inside=False):
        yield proxy


@pytest.fixture
async def inside(tmp_path: Path) -> AsyncIterator[Proxy]:
    """In front of an engine that dies inside an event."""
    async for proxy in in_front_of_a_dying_engine(tmp_path, inside=True):
        yield proxy


def openai_chat(url: str) -> Iterator[str]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for chunk in client.chat.completions.create(model="m", messages=OPENAI_QUESTION, stream=True):
            yield chunk.choices[0].delta.content or ""


def anthropic_events(url: str) -> Iterator[str]:
    with anthropic.Anthropic(base_url=url, api_key="none") as client:
        for event in client.messages.create(model="m", messages=ANTHROPIC_QUESTION, max_tokens=9, stream=True):
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                yield event.delta.text


def anthropic_text(url: str) -> Iterator[str]:
    with anthropic.Anthropic(base_url=url, api_key="none") as client:
        with client.messages.stream(model="m", messages=ANTHROPIC_QUESTION, max_tokens=9) as stream:
            yield from stream.text_stream


Ask = Callable[[str], Iterator[str]]


def text_and_error(ask: Ask, url: str) -> tuple[str, Exception | None]:
    """The text received and the error raised after it; ``None`` if the answer looked complete."""
    text = ""
    try:
        for piece in ask(url):
            text += piece
    except Exception as error:
        return text, error
    return text, None


async def test_openai_sdk_raises_the_error_of_the_last_event(between: Proxy) -> None:
    text, error = await asyncio.to_thread(text_and_error, openai_chat, between.url)

    assert text == TEXT * 2
    assert isinstance(error, openai.APIError)
    assert error.code == "backend_disconnected"


async def test_openai_sdk_raises_when_an_event_is_cut(inside: Proxy) -> None:
    """The stream could be resumed on another backend. So its cut event is discarded, and the error event follows."""
    text, error = await asyncio.to_thread(text_and_error, openai_chat, inside.url)

    assert text == TEXT
    assert isinstance(error, openai.APIError)
    assert error.code == "backend_disconnected"


@pytest.mark.parametrize("ask", [anthropic_events, anthropic_text])
async def test_anthropic_sdk_raises_the_error_of_the_last_event(between: Proxy, ask: Ask) -> None:
    text, error = await asyncio.to_thread(text_and_error, ask, between.url)

    assert text == TEXT * 2
    assert isinstance(error, anthropic.APIStatusError)
    assert isinstance(error.body, dict)
    assert error.body["error"]["type"] == "api_error"


@pytest.mark.parametrize("ask", [anthropic_events, anthropic_text])
async def test_anthropic_sdk_raises_when_an_event_is_cut(inside: Proxy, ask: Ask) -> None:
    text, error = await asyncio.to_thread(text_and_error, ask, inside.url)

    assert text == TEXT
    assert isinstance(error, anthropic.APIStatusError)
    assert isinstance(error.body, dict)
    assert error.body["error"]["type"] == "api_error"


def curl(url: str, version: str) -> subprocess.CompletedProcess[bytes]:
    command = ["curl", "--silent", "--no-buffer", f"--{version}", "--max-time", "30", "--data", '{"stream": true}']
    return subprocess.run([*command, f"{url}/v1/chat/completions"], capture_output=True, check=False)


@pytest.mark.parametrize("version", BROKEN)
async def test_curl_fails_after_the_error_event(between: Proxy, version: str) -> None:
    ended = await asyncio.to_thread(curl, between.url, version)

    assert ended.returncode == BROKEN[version]
    *events, last, rest = ended.stdout.split(b"\n\n")
    assert len(events) == 2
    assert last.startswith(b'data: {"error": {"message": ')
    assert rest == b""


@pytest.mark.parametrize("version", BROKEN)
async def test_curl_fails_when_an_event_is_cut(inside: Proxy, version: str) -> None:
    ended = await asyncio.to_thread(curl, inside.url, version)

    assert ended.returncode == BROKEN[version]
    assert ended.stdout.count(b"\n\n") == 1
    assert b"error" not in ended.stdout
    assert b"[DONE]" not in ended.stdout
