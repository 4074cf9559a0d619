"""A stream survives its engine: another one continues it, and the client sees a pause and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.counters import counted
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.waiting import eventually

PATHS = ("/v1/chat/completions", "/v1/completions")
TOKENS = 300
QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.5", "SLOW_START_SECONDS": "0"}


@dataclass
class Stream:
    """A stream that is being read."""

    backend: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    comments: list[bytes] = field(default_factory=list)
    done: int = 0
    complete: bool = False

    async def read(self, url: str, path: str, body: dict[str, object]) -> None:
        async with Call(url, path, body) as call:
            call.send()
            assert await call.head() == 200
            self.backend = call.headers.get("x-backend", "")
            while event := await call.event():
                self._take(event)
            self.complete = call.complete

    def _take(self, event: bytes) -> None:
        if event.startswith(b":"):
            self.comments.append(event)
        elif event == b"data: [DONE]\n\n":
            self.done += 1
        else:
            self.events.append(json.loads(event.removeprefix(b"data: ")))

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for event in self.events for choice in event.get("choices", ())]

    @property
    def text(self) -> str:
        return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in self.choices)

    @property
    def usage(self) -> dict[str, Any]:
        [usage] = [event["usage"] for event in self.events if event.get("usage")]
        return dict(usage)

    def is_one_answer(self) -> bool:
        """Whether the events are those of one uninterrupted answer."""
        roles = [one for one in self.choices if "role" in one.get("delta", {})]
        finishes = [one["finish_reason"] for one in self.choices if one["finish_reason"]]
        shared = {(event["id"], event["model"], event["system_fingerprint"]) for event in self.events}
        return (self.complete, self.done, finishes, len(shared)) == (True, 1, ["length"], 1) and len(roles) < 2


def question(path: str, number: int, tokens: int = TOKENS) -> dict[str, object]:
    fields = chat(tokens, stream=True, stream_options={"include_usage": True})
    words = " ".join(["kin", "sol", "mer", "tas"][number % 4 :] * (1 + number // 4))
    if path == "/v1/completions":
        del fields["messages"]
        return {**fields, "prompt": words}
    return {**fields, "messages": [{"role": "user", "content": words}]}


@pytest.mark.parametrize("path", PATHS)
async def test_streams_of_a_killed_server_continue_on_another_one(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path, path: str
) -> None:
    servers = start_servers(3, slow_model, "--slots", "4", "--context", "8192")
    victim = servers[0]
    proxy = start_proxy(*servers, **QUICK)
    bodies = [question(path, number) for number in range(9)]
    streams = [Stream() for _ in bodies]
    async with asyncio.TaskGroup() as group:
        for stream, body in zip(streams, bodies, strict=True):
            group.create_task(stream.read(proxy.url, path, body))
        await eventually(lambda: all(len(stream.events) > 5 for stream in streams))
        victim.kill()

    resumed = [stream for stream in streams if stream.comments]
    assert {stream.backend for stream in resumed} == {victim.url}
    assert len(resumed) == 3
    for stream, body in zip(streams, bodies, strict=True):
        assert stream.is_one_answer()
        alone = Stream()
        await alone.read(servers[1].url, path, body)
        assert stream.text == alone.text
        assert stream.usage["total_tokens"] == alone.usage["total_tokens"]
        assert stream.usage["completion_tokens"] == alone.usage["completion_tokens"] == TOKENS
    assert await counted(proxy, "inference_proxy_stream_resumes_total") == {"backend_disconnected": 3}


async def test_the_openai_sdk_does_not_notice_that_its_server_died(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, **QUICK)
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
        asked = await client.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "kin"}],
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = []
        async for chunk in asked:
            chunks.append(chunk)
            if len(chunks) == 20:
                serving = asked.response.headers["x-backend"]
                next(server for server in two_slow_servers if server.url == serving).kill()
    assert await counted(proxy, "inference_proxy_stream_resumes_total") == {"backend_disconnected": 1}
    assert len({chunk.id for chunk in chunks}) == 1
    assert [one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason] == ["length"]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == TOKENS
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


async def test_a_frozen_server_is_replaced_within_three_seconds_with_default_settings(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers)
    stream, body = Stream(), question("/v1/chat/completions", 0)
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.read(proxy.url, "/v1/chat/completions", body))
        await eventually(lambda: len(stream.events) > 5)
        frozen = next(server for server in two_slow_servers if server.url == stream.backend)
        frozen.freeze()
        frozen_at = time.monotonic()
        replies = [group.create_task(send(proxy.url, "/v1/chat/completions", chat(2))) for _ in range(4)]
        await eventually(lambda: stream.comments)
        assert time.monotonic() - frozen_at < 3
        for reply in replies:
            assert (await reply).status == 200
        assert time.monotonic() - frozen_at < 5  # the other server is slow, and has the stream as well
    assert stream.is_one_answer()
    assert await counted(proxy, "inference_proxy_stream_resumes_total") == {"request_moved": 1}
    frozen.thaw()
    await proxy.becomes(frozen, "up")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_draining_with_move_continues_the_streams_elsewhere(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer], workers: str
) -> None:
    proxy = start_proxy(*two_slow_servers, **QUICK, ADMIN_KEY="op", WORKERS=workers)
    streams = [Stream() for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        for number, stream in enumerate(streams):
            group.create_task(stream.read(proxy.url, "/v1/chat/completions", question("/v1/chat/completions", number)))
        await eventually(lambda: all(len(stream.events) > 5 for stream in streams))
        drained = next(server for server in two_slow_servers if server.url == streams[0].backend)
        name = drained.url.removeprefix("http://")
        path = f"/admin/backends/{name}/drain?move=1&wait_seconds=10"
        reply = await send(proxy.url, path, method="POST", headers={"Authorization": "Bearer op"})
        assert reply.json["safe_to_stop"]
        drained.kill()
        moved = [stream for stream in streams if stream.backend == drained.url]
        assert not any(stream.done for stream in moved)
    assert all(stream.is_one_answer() for stream in streams)
    assert all(stream.comments == [b": resumed on another backend after request_moved\n\n"] for stream in moved)
