"""The sums of the ledger equal the counters of real llama.cpp servers, over many requests of all kinds.

``USAGE_REQUESTS`` sets the number of requests: `scripts/test.sh usage` sends 2,000.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from inference_engine_proxy_server.usage.counts import Counts
from inference_engine_proxy_server.usage.query import query_of, read_rows
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

REQUESTS = int(os.environ.get("USAGE_REQUESTS", "300"))
AT_A_TIME = 4
WORDS = ["kin", "sol", "mer", "tas"]
SECRETS = {name: f"sk-{name}-0123456789abcdef" for name in ("alice", "bob")}
KEYS = "keys:\n" + "".join(f"  - {{name: {name}, secret: {secret}}}\n" for name, secret in SECRETS.items())
COUNTERS = {
    "llamacpp:prompt_tokens_total": "read",
    "llamacpp:prompt_tokens_cached_total": "cached",
    "llamacpp:tokens_predicted_total": "written",
}


@pytest.fixture(scope="module")
def servers(tiny_model: Path, slow_model: Path) -> Iterator[dict[str, list[LlamaServer]]]:
    """By model: two for requests that end, one for clients that leave, one for embeddings."""
    with ExitStack() as stack:
        options = {
            "tiny": ["--slots", "2", "--context", "8192"],
            "left": ["--slots", "2", "--context", "8192"],
            "vectors": ["--slots", "1", "--embeddings"],
        }
        yield {
            model: [
                stack.enter_context(
                    LlamaServer(slow_model if model == "left" else tiny_model, "--alias", model, *options[model])
                )
                for _ in range(2 if model == "tiny" else 1)
            ]
            for model in options
        }


def counters(servers: list[LlamaServer]) -> dict[str, int]:
    pages = [server.metrics() for server in servers]
    return {name: int(sum(page[metric] for page in pages)) for metric, name in COUNTERS.items()}


class Client:
    """Sends requests of all kinds, by a fixed seed.

    Attributes:
        ended, failed, left, embedded: how many of each kind it has sent.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._random = random.Random(7)
        self.ended = self.failed = self.left = self.embedded = 0

    async def ask(self, _number: int) -> None:
        """Send a request of a random kind."""
        kind = self._random.random()
        words = " ".join(self._random.choices(WORDS, k=self._random.randrange(1, 60)))
        tokens = self._random.randrange(1, 40)
        secret = self._random.choice(list(SECRETS.values()))
        headers = {"authorization": f"Bearer {secret}"}
        if kind < 0.08:
            await self._leave(chat(300, stream=True, model="left", ignore_eos=True), headers)
        elif kind < 0.16:
            reply = await send(self._url, "/v1/embeddings", {"model": "vectors", "input": words}, headers=headers)
            assert reply.status == 200, reply.body
            self.embedded += 1
        elif kind < 0.22:
            body = chat(model="tiny", messages=self._random.choice(["none", None, 5]))
            reply = await send(self._url, "/v1/chat/completions", body, headers=headers)
            assert 400 <= reply.status < 500, reply.body
            self.failed += 1
        else:
            path, body = self._question(words, tokens)
            reply = await send(self._url, path, body, headers=headers)
            assert (reply.status, reply.complete) == (200, True), reply.body
            self.ended += 1

    def _question(self, words: str, tokens: int) -> tuple[str, dict[str, object]]:
        stream = self._random.random() < 0.6
        usual: dict[str, object] = {"model": "tiny", "stream": stream, "seed": self._random.randrange(100)}
        messages = [{"role": "user", "content": words}]
        if stream and self._random.random() < 0.4:
            usual["stream_options"] = {"include_usage": True}
        path = self._random.choice(
            ["/v1/chat/completions", "/v1/completions", "/completion", "/v1/messages", "/v1/responses"]
        )
        if path == "/v1/responses":
            return path, {**usual, "input": words, "max_output_tokens": tokens}
        if path in ("/v1/completions", "/completion"):
            return path, {**usual, "prompt": words, "max_tokens": tokens, "n_predict": tokens}
        return path, {**usual, "messages": messages, "max_tokens": tokens}

    async def _leave(self, body: dict[str, object], headers: dict[str, str]) -> None:
        """Disconnect during the stream, after some events or before the first one."""
        async with Call(self._url, "/v1/chat/completions", body, headers=headers) as call:
            call.send()
            for number in range(self._random.randrange(4)):
                if not number:
                    await call.head()
                await call.event()
            await call.reset()
        self.left += 1


async def test_the_sums_equal_the_counters_of_the_engines(
    tmp_path: Path, servers: dict[str, list[LlamaServer]]
) -> None:
    (tmp_path / "keys.yaml").write_text(KEYS)
    urls = [server.url for group in servers.values() for server in group]
    before = {model: counters(group) for model, group in servers.items()}
    with Proxy(tmp_path, urls, USAGE_FILE="usage.db", API_KEYS_FILE="keys.yaml", ACCESS_LOG="false") as proxy:
        client = Client(proxy.url)
        numbers = iter(range(REQUESTS))

        async def work() -> None:
            for number in numbers:
                await client.ask(number)

        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))

        async def is_idle() -> bool:
            return not await proxy.in_flight()

        await eventually(is_idle)
    rows = {
        row.groups[0]: row.counts for row in read_rows(tmp_path / "usage.db", query_of({"by": "model"}, time.time()))
    }
    work_done = {
        model: {name: count - before[model][name] for name, count in counters(group).items()}
        for model, group in servers.items()
    }
    assert (rows["tiny"].requests, rows["tiny"].failed_requests) == (client.ended + client.failed, client.failed)
    assert rows["vectors"].requests == client.embedded
    for model in ("tiny", "vectors"):
        assert rows[model].estimated_requests == 0
        assert summed(rows[model]) == work_done[model]
    left = rows["left"]
    # A client that leaves at once may do so before its request is sent to the engine.
    assert client.left * 0.5 <= left.requests <= client.left
    # On a busy machine, an answer may be complete before its client leaves. Its tokens are exact.
    assert left.requests - 2 <= left.estimated_requests <= left.requests
    assert 0 < left.estimated_tokens <= left.input_tokens + left.output_tokens
    assert left.failed_requests == 0


def summed(counts: Counts) -> dict[str, int]:
    return {
        "read": counts.input_tokens - counts.cached_tokens,
        "cached": counts.cached_tokens,
        "written": counts.output_tokens,
    }
