"""Node and browsers notice that a stream is incomplete when its engine has died.

``end_to_end/test_broken_streams.py`` has the same for Python and curl.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from clients.browser import answer_shown
from clients.recipes import Block, run
from end_to_end.broken_stream import TEXT, DyingEngine
from support.program import Proxy

pytestmark = pytest.mark.clients

ADDRESS = "http://127.0.0.1:8888"  # `Block.at` replaces it by the address of the proxy

OPENAI = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: "http://127.0.0.1:8888/v1", apiKey: "none" });
const seen = { text: "", ended: false };
try {
  const stream = await client.chat.completions.create({
    model: "m", stream: true, messages: [{ role: "user", content: "kin" }],
  });
  for await (const chunk of stream) seen.text += chunk.choices[0].delta.content ?? "";
  seen.ended = true;
} catch (error) {
  seen.raised = error.constructor.name;
  seen.code = error.code;
  seen.isApiError = error instanceof OpenAI.APIError;
}
console.log(JSON.stringify(seen));
"""

ANTHROPIC = """
import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({ baseURL: "http://127.0.0.1:8888", apiKey: "none" });
const question = { model: "m", max_tokens: 9, messages: [{ role: "user", content: "kin" }] };
const seen = { text: "", ended: false };
try {
  for await (const event of await client.messages.create({ ...question, stream: true }))
    if (event.type === "content_block_delta") seen.text += event.delta.text;
  seen.ended = true;
} catch (error) {
  seen.raised = error.constructor.name;
  seen.code = error.error?.error?.type;
  seen.isApiError = error instanceof Anthropic.APIError;
}
console.log(JSON.stringify(seen));
"""

# The page shows the content of `seen`.
PAGE = """<!doctype html>
<pre id="answer"></pre>
<script type="module">
  const proxy = "http://127.0.0.1:8888";
  const seen = { text: "", ended: false };
  const show = () => (document.getElementById("answer").textContent = JSON.stringify(seen));
  %s
</script>
"""

FETCH = """
  try {
    const reply = await fetch(`${proxy}/v1/chat/completions`, { method: "POST", body: '{"stream": true}' });
    const reader = reply.body.getReader();
    const decoder = new TextDecoder();
    for (let read; !(read = await reader.read()).done; ) seen.text += decoder.decode(read.value, { stream: true });
    seen.ended = true;
  } catch (error) {
    seen.raised = error.name;
  }
  show();
"""

EVENT_SOURCE = """
  const source = new EventSource(`${proxy}/v1/stream`);
  seen.messages = [];
  source.onmessage = (event) => seen.messages.push(event.data);
  await new Promise((resolve) => (source.onerror = resolve));
  seen.raised = "error";
  seen.tries_again = source.readyState === EventSource.CONNECTING;
  source.close();
  show();
"""


@pytest.fixture(params=[False, True], ids=["between events", "inside one"])
def inside(request: pytest.FixtureRequest) -> bool:
    """Whether the engine dies inside an event."""
    return bool(request.param)


@pytest.fixture
async def proxy(inside: bool, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    async with DyingEngine(inside=inside) as engine:
        with await asyncio.to_thread(Proxy, tmp_path_factory.mktemp("proxy"), [engine.url]) as proxy:
            yield proxy
            await asyncio.to_thread(proxy.stop)
            assert {(line.status, line.outcome) for line in proxy.access_lines} == {(200, "broken")}


async def node(program: str, proxy: Proxy, folder: Path) -> dict[str, Any]:
    block = Block("", "js", program, is_run=True)
    seen: dict[str, Any] = json.loads((await asyncio.to_thread(run, block, proxy.url, folder)).text)
    return seen


async def browser(script: str, proxy: Proxy, folder: Path) -> dict[str, Any]:
    page = (PAGE % script).replace(ADDRESS, proxy.url)
    seen: dict[str, Any] = json.loads(await asyncio.to_thread(answer_shown, page, folder))
    return seen


@pytest.mark.parametrize(
    ("program", "code"), [(OPENAI, "backend_disconnected"), (ANTHROPIC, "api_error")], ids=["openai", "anthropic"]
)
async def test_node_sdk_raises_on_a_broken_stream(
    proxy: Proxy, inside: bool, tmp_path: Path, program: str, code: str
) -> None:
    seen = await node(program, proxy, tmp_path)

    assert not seen["ended"]
    assert seen["text"] == TEXT * (1 if inside else 2)
    assert (seen["isApiError"], seen["code"]) == (True, code)  # a cut event is discarded, and the error event follows


async def test_browser_fetch_fails_on_a_broken_stream(proxy: Proxy, inside: bool, tmp_path: Path) -> None:
    """Chromium drops unread data when the connection breaks, so the page may lose the last event."""
    seen = await browser(FETCH, proxy, tmp_path)

    assert not seen["ended"]
    assert seen["raised"] == "TypeError"  # as for any network failure
    assert "[DONE]" not in seen["text"]
    if seen["text"]:
        assert seen["text"].count("\n\n") == (1 if inside else 3)
        assert ('data: {"error": ' in seen["text"]) == (not inside)


async def test_browser_event_source_gets_the_error_event_and_then_an_error(
    proxy: Proxy, inside: bool, tmp_path: Path
) -> None:
    """It would reconnect by itself, as after any end of a stream."""
    seen = await browser(EVENT_SOURCE, proxy, tmp_path)

    assert seen["raised"] == "error"
    assert seen["tries_again"]
    messages = [json.loads(message) for message in seen["messages"]]  # valid JSON, so none of them is [DONE]
    assert ["error" in message for message in messages] == ([False] if inside else [False, False, True])
