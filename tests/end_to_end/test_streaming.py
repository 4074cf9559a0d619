"""A stream is relayed unchanged, as it is generated."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

CHANGING_FIELDS = ("id", "created", "timings")
MESSAGES = {"max_tokens": 12, "stream": True, "messages": [{"role": "user", "content": "kin"}]}


def comparable(reply: Reply) -> list[Any]:
    """The events of a stream, without the fields that differ between two answers of one engine."""
    *events, end = reply.body.decode().split("\n\n")
    assert end == ""
    assert reply.complete
    return [without_changing(json.loads(event[6:])) if event.startswith("data: {") else event for event in events]


def without_changing(event: dict[str, Any]) -> dict[str, Any]:
    event.get("prompt_progress", {}).pop("time_ms", None)
    return {name: value for name, value in event.items() if name not in CHANGING_FIELDS}


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}, {"return_progress": True}])
async def test_stream_equals_that_of_the_engine(
    shared_proxy: Proxy, shared_server: LlamaServer, options: dict[str, Any]
) -> None:
    body = chat(40, stream=True, cache_prompt=False, **options)

    direct = await send(shared_server.url, "/v1/chat/completions", body)
    proxied = await send(shared_proxy.url, "/v1/chat/completions", body)

    assert comparable(proxied) == comparable(direct)
    assert len(comparable(direct)) > 40
    assert proxied.body.endswith(b"data: [DONE]\n\n")
    ours = ("x-request-id", "x-backend")
    kept = {name: value for name, value in proxied.headers.items() if name not in ours}
    engines_own = {name: value for name, value in direct.headers.items() if name not in ("keep-alive", "connection")}
    assert kept == engines_own


async def test_events_arrive_as_they_are_generated(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path
) -> None:
    proxy = start_proxy(*start_servers(1, slow_model))
    arrivals = []
    async with Call(proxy.url, "/v1/chat/completions", chat(500, stream=True)) as stream:
        began = time.monotonic()
        stream.send()
        assert await stream.head() == 200
        while await stream.event():
            arrivals.append(time.monotonic() - began)

    assert stream.complete
    assert len(arrivals) > 500
    assert arrivals[0] < arrivals[-1] / 4
    assert arrivals[len(arrivals) // 2] < arrivals[-1] * 0.8


async def test_anthropic_stream_is_relayed(shared_proxy: Proxy) -> None:
    reply = await send(shared_proxy.url, "/v1/messages", MESSAGES)

    names = [line[7:] for line in reply.body.decode().splitlines() if line.startswith("event: ")]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert names[0] == "message_start"
    assert names[-1] == "message_stop"
    assert names.count("content_block_delta") >= 10
    assert reply.complete


async def test_client_that_reads_late_gets_the_whole_stream(
    start_proxy: StartProxy, start_servers: StartServers, tiny_model: Path
) -> None:
    """The engine has generated the whole body before the client reads a byte."""
    [server] = start_servers(1, tiny_model, "--slots", "1", "--context", "4096")
    proxy = start_proxy(server)
    body = chat(3000, stream=True, logprobs=True, top_logprobs=10)
    async with Call(proxy.url, "/v1/chat/completions", body) as stream:
        stream.send()
        assert await stream.head() == 200
        await eventually(lambda: server.metrics()["llamacpp:requests_processing"] == 0)
        reply = await stream.reply()

    assert reply.complete
    assert len(reply.body) > 2_000_000
    assert reply.body.count(b'"content":"') == 3000
