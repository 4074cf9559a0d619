"""Node's SDK does not notice that its chat continues on another backend."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from clients.recipes import Block, run
from support.engine import STREAM_HEAD, Engine, chunk
from support.fakes.engine import EngineConnection
from support.program import program

pytestmark = pytest.mark.clients

NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: "http://127.0.0.1:8888/v1", apiKey: "none", maxRetries: 0 });
const question = { model: "m", messages: [{ role: "user", content: "count" }] };
const runner = client.chat.completions.stream({ ...question, stream_options: { include_usage: true } });
const ids = new Set();
runner.on("chunk", (chunk) => ids.add(chunk.id));
const answer = await runner.finalChatCompletion();
const { message, finish_reason } = answer.choices[0];
console.log(JSON.stringify({ message, finish_reason, usage: answer.usage, ids: [...ids] }));
"""


def event(identity: str, delta: dict[str, str], finish: str | None = None, **members: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    whole = {"id": identity, "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return chunk(b"data: " + json.dumps(whole | members).encode() + b"\n\n")


async def breaks(connection: EngineConnection) -> None:
    connection.send(STREAM_HEAD, event("first", {"role": "assistant", "content": ""}))
    connection.send(event("first", {"content": "one"}), event("first", {"content": " two"}))
    connection.finish()


async def continues(connection: EngineConnection) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}
    connection.send(STREAM_HEAD, event("second", {"role": "assistant", "content": ""}))
    connection.send(event("second", {"content": " three"}), event("second", {}, "stop"))
    connection.send(event("second", {}, choices=[], usage=usage), chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n")


async def test_the_node_sdk_does_not_notice_that_its_stream_was_resumed(tmp_path: Path) -> None:
    async with Engine(breaks) as first, Engine(continues, processing=5) as second:
        async with program(tmp_path / "proxy", first, second) as proxy:
            output = await asyncio.to_thread(run, Block("", "js", NODE, is_run=True), proxy.url, tmp_path)
            assert await proxy.metric("stream_resumes_total") == 1
    seen = json.loads(output.text)
    assert (seen["message"]["content"], seen["finish_reason"], seen["ids"]) == ("one two three", "stop", ["first"])
    assert seen["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
