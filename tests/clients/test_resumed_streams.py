"""Anthropic's and OpenAI's SDK for Node do not notice that their engine died and another one went on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from clients.recipes import Block, run
from end_to_end.breaking_engine import WORDS, Engine, Plan, closes
from support.program import Proxy

pytestmark = pytest.mark.clients

MESSAGES = """
import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({ baseURL: "http://127.0.0.1:8888", apiKey: "none", maxRetries: 0 });
const question = { model: "m", max_tokens: 9, messages: [{ role: "user", content: "count" }] };
const seen = { pieces: 0 };
const stream = client.messages.stream(question).on("text", () => seen.pieces++);
const message = await stream.finalMessage();
seen.blocks = message.content.map((block) => block.text);
seen.end = message.stop_reason;
seen.tokens = [message.usage.input_tokens, message.usage.output_tokens];
console.log(JSON.stringify(seen));
"""

RESPONSES = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: "http://127.0.0.1:8888/v1", apiKey: "none", maxRetries: 0 });
const seen = { pieces: 0 };
const stream = client.responses.stream({ model: "m", input: "count" });
stream.on("response.output_text.delta", () => seen.pieces++);
const response = await stream.finalResponse();
seen.blocks = response.output.flatMap((item) => item.content.map((part) => part.text));
seen.end = response.status;
seen.tokens = [response.usage.input_tokens, response.usage.output_tokens];
console.log(JSON.stringify(seen));
"""


@pytest.mark.parametrize(("program", "end"), [(MESSAGES, "end_turn"), (RESPONSES, "completed")])
async def test_the_node_sdk_reads_one_answer(tmp_path: Path, program: str, end: str) -> None:
    plan = Plan([closes])
    async with Engine(plan) as one, Engine(plan) as other:
        with await asyncio.to_thread(Proxy, tmp_path, [one.url, other.url]) as proxy:
            output = await asyncio.to_thread(run, Block("", "js", program, is_run=True), proxy.url, tmp_path)
    seen: dict[str, Any] = json.loads(output.text)
    assert seen == {"pieces": len(WORDS), "blocks": ["".join(WORDS)], "end": end, "tokens": [8, len(WORDS)]}
    assert len(plan.bodies) == 2
