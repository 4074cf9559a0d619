"""Requests go to the backend with the earliest expected first token, usually the one that has cached their prefix."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import Reply, send
from support.llama_server import LlamaServer
from support.program import Proxy

PATH = "/v1/chat/completions"
POLICY = {"BALANCING_POLICY": "expected_time"}
Message = dict[str, str]


@pytest.fixture
def servers(start_servers: StartServers, tiny_model: Path) -> list[LlamaServer]:
    return start_servers(2, tiny_model, "--slots", "2", "--context", "8192", "--http-threads", "32")


def system(name: str) -> Message:
    """A long message that depends on ``name``."""
    return {"role": "system", "content": " ".join(f"{name} {number}" for number in range(160))}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


async def ask(proxy: Proxy, messages: list[Message], *, stream: bool = False, answer_tokens: int = 4) -> Reply:
    body = {"messages": messages, "max_tokens": answer_tokens, "temperature": 0, "stream": stream, "ignore_eos": True}
    reply = await send(proxy.url, PATH, body)
    assert reply.status == 200
    return reply


@pytest.mark.parametrize("stream", [False, True])
async def test_conversation_continues_on_its_first_backend(
    start_proxy: StartProxy, servers: list[LlamaServer], stream: bool
) -> None:
    proxy = start_proxy(*servers, **POLICY)
    for name in "abcdef":
        messages = [system(name), user("Begin.")]
        first = await ask(proxy, messages, stream=stream)
        for turn in range(3):
            messages += [{"role": "assistant", "content": "Well."}, user(f"Go on, {turn}.")]
            again = await ask(proxy, messages, stream=stream)
            assert again.headers["x-backend"] == first.headers["x-backend"]
            if not stream:
                usage = again.json["usage"]
                assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2


async def test_conversations_with_different_prefixes_are_spread(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*servers, **POLICY)
    shares = Counter([(await ask(proxy, [system(name), user("Begin.")])).headers["x-backend"] for name in "abcdefgh"])
    assert len(shares) == 2
    assert min(shares.values()) >= 2


async def test_shared_prefix_makes_no_hot_spot(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, **POLICY)
    await ask(proxy, [system("a"), user("Begin.")])
    # The answers take so long that waiting for the warm backend is slower than reading the prefix again.
    questions = ([system("a"), user(f"Question {number}")] for number in range(24))
    replies = await asyncio.gather(*(ask(proxy, messages, answer_tokens=400) for messages in questions))
    shares = Counter(reply.headers["x-backend"] for reply in replies)
    assert len(shares) == 2
    assert max(shares.values()) <= 18


@pytest.mark.parametrize("policy", ["power_of_two", "round_robin", "rendezvous"])
async def test_other_policies_serve_all_requests(
    start_proxy: StartProxy, servers: list[LlamaServer], policy: str
) -> None:
    proxy = start_proxy(*servers, BALANCING_POLICY=policy)
    backends = [(await ask(proxy, [system(name), user("Begin.")])).headers["x-backend"] for name in "abcdefgh"]
    again = [(await ask(proxy, [system(name), user("Begin.")])).headers["x-backend"] for name in "abcdefgh"]
    assert {*backends, *again} == {server.url for server in servers}
    if policy == "round_robin":
        assert backends == backends[:2] * 4
    if policy == "rendezvous":
        assert again == backends
