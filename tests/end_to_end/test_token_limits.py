"""``tokens_per_minute`` counts every reply, whichever other observers watch it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from support.engine import STREAM_HEAD, Engine, chunk, says
from support.fakes.engine import http_reply
from support.live_proxy import live_proxy

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
        engine = await stack.enter_async_context(Engine(says(REPLIES[reply])))
        proxy = await stack.enter_async_context(live_proxy(engine.url, **settings))
        replies = [await proxy.http.post(path, json=body, headers=headers) for _ in range(3)]
    assert [one.status_code for one in replies] == [200, 429, 429]
    assert ("x-proxy-decision" in replies[0].headers) is ("x-proxy-explain" in fields)
    assert replies[0].headers["x-ratelimit-limit-tokens"] == replies[1].headers["x-ratelimit-limit-tokens"] == "100"
