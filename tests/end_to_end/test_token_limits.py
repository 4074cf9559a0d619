"""``tokens_per_minute`` counts every reply, whichever other observers watch it."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from support.engine import STREAM_HEAD, Engine, answers_with, chunk, hangs
from support.fakes.engine import http_reply
from support.live_proxy import live_proxy
from support.waiting import eventually

SECRET = "sk-budget-0123456789abcdef"  # noqa: S105 - of no account
KEYS = f"keys:\n  - {{name: budget, secret: {SECRET}, tokens_per_minute: 100}}\n"
USAGE = b'{"id": "resp_1", "usage": {"prompt_tokens": 300, "completion_tokens": 1}}'
TOKENS = [b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'] * 30
EVENTS = [*TOKENS, b'data: {"usage": {"prompt_tokens": 300, "completion_tokens": 1}}\n\n', b"data: [DONE]\n\n"]
REPLIES = {
    "whole": http_reply(USAGE, fields=b"content-type: application/json\r\n"),
    "stream": STREAM_HEAD + b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n",
}
CONVERSATION = {"x-conversation-id": "c1"}  # adds the affinity observer, as /v1/responses does
EXPLAIN = {"x-proxy-explain": "1"}


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])  # the latter adds the learning observer
@pytest.mark.parametrize("fields", [{}, CONVERSATION, EXPLAIN, CONVERSATION | EXPLAIN], ids=str)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("reply", REPLIES)
async def test_key_is_refused_once_its_tokens_are_used_up(
    tmp_path: Path, reply: str, path: str, fields: dict[str, str], policy: str
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    settings: dict[str, Any] = {"balancing_policy": policy, "api_keys_file": str(keys), "explain_header": True}
    body = {"model": "m", "input": "hello", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {SECRET}"} | fields
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(answers_with(REPLIES[reply])))
        proxy = await stack.enter_async_context(live_proxy(engine.url, **settings))
        replies = [await proxy.http.post(path, json=body, headers=headers) for _ in range(3)]
    assert [one.status_code for one in replies] == [200, 429, 429]
    assert ("x-proxy-decision" in replies[0].headers) is ("x-proxy-explain" in fields)
    assert replies[0].headers["x-ratelimit-limit-tokens"] == replies[1].headers["x-ratelimit-limit-tokens"] == "100"


CUT = b'data: {"usage": {"prompt_tokens": 300, "completion_tokens": 1}}\n\n'
LONG = {
    "choices": [],
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
    "prompt_logprobs": [{"1": {"decoded_token": "usage"}}] * 2000,
}
ODD_REPLIES = {
    **{f"cut at {at}": STREAM_HEAD + chunk(CUT[:at]) + chunk(CUT[at:]) + b"0\r\n\r\n" for at in (10, 20, 35, 50)},
    "long": http_reply(json.dumps(LONG).encode(), fields=b"content-type: application/json\r\n"),
}
ODD_TOKENS = {"long": 1}


@pytest.mark.parametrize("name", ODD_REPLIES)
async def test_tokens_left_are_exact_however_the_reply_is_cut_and_ordered(tmp_path: Path, name: str) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS.replace("100}", "60000}"))
    headers = {"authorization": f"Bearer {SECRET}", "accept-encoding": "gzip"}
    async with (
        Engine(answers_with(ODD_REPLIES[name])) as engine,
        live_proxy(engine.url, api_keys_file=str(keys)) as proxy,
    ):
        replies = [await proxy.http.post("/v1/completions", json={"prompt": "a"}, headers=headers) for _ in range(2)]
        assert not any(b"gzip" in request for request in engine.served)
    left = int(replies[1].headers["x-ratelimit-remaining-tokens"])
    assert left == pytest.approx(60_000 - ODD_TOKENS.get(name, 301), abs=20)


async def test_a_client_that_leaves_before_the_reply_pays_for_its_prompt(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    headers = {"authorization": f"Bearer {SECRET}"}
    body = {"prompt": "x" * 4000}
    async with Engine(hangs) as engine, live_proxy(engine.url, api_keys_file=str(keys)) as proxy:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await proxy.http.post("/v1/completions", json=body, headers=headers)
        assert engine.served
        await eventually(lambda: not engine.open_requests)
        assert (await proxy.http.post("/v1/completions", json=body, headers=headers)).status_code == 429
