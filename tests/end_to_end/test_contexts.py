"""A prompt goes to a backend whose context it fits, in a fleet with different context lengths."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import Reply, send
from support.llama_server import LlamaServer
from support.program import Proxy

PATH = "/v1/chat/completions"
# The tiny model has one token per byte. The proxy learns this from the first replies.
SHORT, MIDDLING, LONG, TOO_LONG = ("x" * size for size in (50, 1900, 3500, 5000))


@pytest.fixture(params=["least_requests", "expected_time", "round_robin"])
def policy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def small(start_servers: StartServers, tiny_model: Path) -> LlamaServer:
    """Each slot has 1,024 tokens."""
    return start_servers(1, tiny_model, "--slots", "2", "--context", "2048", "--http-threads", "32")[0]


@pytest.fixture
def large(start_servers: StartServers, tiny_model: Path) -> LlamaServer:
    """Each slot has 4,096 tokens."""
    return start_servers(1, tiny_model, "--slots", "2", "--context", "8192", "--http-threads", "32")[0]


async def ask(proxy: Proxy, text: str, **members: Any) -> Reply:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0, **members}
    return await send(proxy.url, PATH, body)


async def ask_all(proxy: Proxy, texts: list[str]) -> Counter[str]:
    """Send all requests at once; returns how many each backend answered."""
    replies = await asyncio.gather(*(ask(proxy, text, stream=len(text) % 2 == 0) for text in texts))
    assert {reply.status for reply in replies} == {200}
    return Counter(reply.headers["x-backend"] for reply in replies)


async def test_long_prompts_are_always_answered_and_short_ones_use_all_servers(
    start_proxy: StartProxy, small: LlamaServer, large: LlamaServer, policy: str
) -> None:
    proxy = start_proxy(small, large, BALANCING_POLICY=policy)
    short = [f"{number} {SHORT}" for number in range(8)]
    long = [f"{number} {LONG}" for number in range(8)]
    assert set(await ask_all(proxy, short)) == {small.url, large.url}
    servers = await ask_all(proxy, [text for pair in zip(long, short, strict=True) for text in pair])
    assert servers[large.url] >= len(long)
    assert set(await ask_all(proxy, long)) == {large.url}


async def test_fit_is_learned_from_replies(
    start_proxy: StartProxy, small: LlamaServer, large: LlamaServer, policy: str
) -> None:
    proxy = start_proxy(small, large, BALANCING_POLICY=policy)
    await ask(proxy, LONG)
    for number in range(8):
        reply = await ask(proxy, f"{number} {MIDDLING}")
        assert (reply.status, reply.headers["x-backend"]) == (200, large.url)


async def test_prompt_that_fits_nowhere_gets_the_error_of_the_longest_context(
    start_proxy: StartProxy, small: LlamaServer, large: LlamaServer, policy: str
) -> None:
    proxy = start_proxy(small, large, BALANCING_POLICY=policy)
    await ask(proxy, LONG)
    for _ in range(4):
        reply = await ask(proxy, TOO_LONG)
        error = reply.json["error"]
        assert (reply.status, reply.headers["x-backend"], error["n_ctx"]) == (400, large.url, 4096)


async def test_servers_with_equal_contexts_decide_themselves(
    start_proxy: StartProxy, small: LlamaServer, policy: str
) -> None:
    proxy = start_proxy(small, BALANCING_POLICY=policy)
    assert (await ask(proxy, LONG)).status == 400


async def test_health_shows_context_lengths(start_proxy: StartProxy, small: LlamaServer, large: LlamaServer) -> None:
    proxy = start_proxy(small, large)
    details = (await send(proxy.url, "/health")).json["details"]
    assert [list(one["contexts"].values()) for one in details] == [[1024], [4096]]
    assert [list(one["contexts"]) for one in details] == [one["models"] for one in details]
