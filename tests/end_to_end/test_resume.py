"""A stream survives its engine: another one continues it, and the client sees a pause and nothing else.

``resumed/test_acceptance.py`` compares the text of many streams with what engines say.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import pytest

from end_to_end.answer_stream import AnswerStream
from end_to_end.conftest import StartProxy
from support.counters import counted
from support.http_client import chat, send
from support.llama_server import LlamaServer
from support.waiting import eventually

PATH = "/v1/chat/completions"
TOKENS = 300
QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.5", "SLOW_START_SECONDS": "0"}


def question(number: int) -> dict[str, Any]:
    words = " ".join(["kin", "sol", "mer", "tas"][number % 4 :] * (1 + number // 4))
    return chat(TOKENS, stream=True) | {"messages": [{"role": "user", "content": words}]}


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
    stream, body = AnswerStream(), question(0)
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.read(proxy.url, PATH, body))
        await eventually(lambda: len(stream.events) > 5)
        frozen = next(server for server in two_slow_servers if server.url == stream.backend)
        frozen.freeze()
        frozen_at = time.monotonic()
        replies = [group.create_task(send(proxy.url, PATH, chat(2))) for _ in range(4)]
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
    streams = [AnswerStream() for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        for number, stream in enumerate(streams):
            group.create_task(stream.read(proxy.url, PATH, question(number)))
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
