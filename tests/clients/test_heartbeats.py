"""Node's SDKs and browsers wait for a stream as long as it has heartbeats, and notice an error after them.

``end_to_end/test_sdk_heartbeats.py`` has the same for Python.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from clients.browser import opened
from clients.recipes import Block, run
from end_to_end.slow_engine import ERROR, TEXT, SlowEngine
from support.program import Proxy

pytestmark = pytest.mark.clients

ENGINE_SECONDS = 5.0
HEARTBEATS = {"STREAM_HEARTBEAT_SECONDS": "0.1"}  # at each check of the deadlines, which is every 0.25 s

# Each client allows 2 s until the reply begins.
CLIENTS = """
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";
const openai = new OpenAI({ baseURL: "http://127.0.0.1:8888/v1", apiKey: "none", timeout: 2000, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: "http://127.0.0.1:8888", apiKey: "none", timeout: 2000, maxRetries: 0 });
const messages = [{ role: "user", content: "kin" }];
const seen = { text: "" };
try {
  %s
} catch (error) {
  seen.message = error.message;
  seen.isApiError = error instanceof OpenAI.APIError || error instanceof Anthropic.APIError;
  const timeouts = [OpenAI.APIConnectionTimeoutError, Anthropic.APIConnectionTimeoutError];
  seen.isTimeout = timeouts.some((kind) => error instanceof kind);
}
console.log(JSON.stringify(seen));
"""
CHAT = """
  for await (const chunk of await openai.chat.completions.create({ model: "m", stream: true, messages }))
    seen.text += chunk.choices[0].delta.content ?? "";
"""
RESPONSE = """
  for await (const event of await openai.responses.create({ model: "m", stream: true, input: "kin" }))
    if (event.type === "response.output_text.delta") seen.text += event.delta;
"""
MESSAGE = """
  for await (const event of await anthropic.messages.create({ model: "m", max_tokens: 9, stream: true, messages }))
    if (event.type === "content_block_delta") seen.text += event.delta.text;
"""
ALL = pytest.mark.parametrize("program", [CHAT, RESPONSE, MESSAGE], ids=["chat", "response", "message"])


@asynccontextmanager
async def proxy_of(folder: Path, engine: SlowEngine, **settings: str) -> AsyncIterator[Proxy]:
    folder = folder / "proxy"
    folder.mkdir()
    async with engine:
        with await asyncio.to_thread(Proxy, folder, [engine.url], **(HEARTBEATS | settings)) as proxy:
            yield proxy
            await asyncio.to_thread(proxy.stop)


async def node(program: str, proxy: Proxy, folder: Path) -> dict[str, Any]:
    block = Block("", "js", CLIENTS % program, is_run=True)
    seen: dict[str, Any] = json.loads((await asyncio.to_thread(run, block, proxy.url, folder)).text)
    return seen


@ALL
async def test_node_sdks_wait_for_a_stream_with_heartbeats(tmp_path: Path, program: str) -> None:
    async with proxy_of(tmp_path, SlowEngine(ENGINE_SECONDS)) as proxy:
        assert await node(program, proxy, tmp_path) == {"text": TEXT}


@ALL
async def test_node_sdks_give_up_without_heartbeats(tmp_path: Path, program: str) -> None:
    async with proxy_of(tmp_path, SlowEngine(ENGINE_SECONDS), STREAM_HEARTBEAT_SECONDS="0") as proxy:
        assert (await node(program, proxy, tmp_path))["isTimeout"]


@ALL
async def test_node_sdks_raise_an_error_after_heartbeats(tmp_path: Path, program: str) -> None:
    async with proxy_of(tmp_path, SlowEngine(1, 400)) as proxy:
        seen = await node(program, proxy, tmp_path)
    assert (seen["text"], seen["isApiError"]) == ("", True)
    assert ERROR in seen["message"]


async def test_a_page_of_the_proxys_own_origin_skips_heartbeats(tmp_path: Path) -> None:
    """As the web UI of llama.cpp does; the reply has no header that would allow another origin to read it."""
    ask = """
      fetch("/v1/chat/completions", {method: "POST", body: '{"stream": true}'}).then((reply) => reply.text())
    """
    async with proxy_of(tmp_path, SlowEngine(1)) as proxy, opened(f"{proxy.url}/docs", tmp_path) as page:
        events = (await page.value(ask)).split("\n\n")
    comments = [event for event in events if event.startswith(":")]
    assert comments
    assert events[: len(comments)] == comments == [": keep-alive"] * len(comments)
    assert json.loads(events[len(comments)].removeprefix("data: "))["choices"][0]["delta"]["content"] == TEXT
