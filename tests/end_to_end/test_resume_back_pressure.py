"""A client that reads slowly slows the backend that continues its stream, too."""

from __future__ import annotations

import asyncio
import json

from support.engine import STREAM_HEAD, Engine, chunk
from support.fakes.engine import EngineConnection
from support.http_client import Call
from support.live_proxy import live_proxy
from support.waiting import eventually

CHAT = "/v1/chat/completions"
PADDING = "x" * 64 * 1024  # no part of the text, which must stay short enough to be continued
EVENTS = 600  # 38 MB: more than the kernel buffers for two connections
LAST = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    members = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return chunk(b"data: " + json.dumps({"id": "1", "model": "m", **members, "padding": PADDING}).encode() + b"\n\n")


async def long_answer(connection: EngineConnection) -> None:
    connection.send(STREAM_HEAD, event({"role": "assistant", "content": ""}))
    connection.send(*(event({"content": "w"}) for _ in range(EVENTS)))
    connection.send(event({}, "stop"), LAST)


async def test_the_backend_that_continues_a_stream_is_paused_while_the_client_is_behind() -> None:
    async with Engine(long_answer, owner="vllm") as one, Engine(long_answer, owner="vllm") as other:
        async with live_proxy(one.url, other.url, admin_key="op") as proxy:
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "go"}]}
            async with Call(proxy.url, CHAT, body) as call:
                call.send()
                assert await call.head() == 200
                first = one if one.served else other
                second = other if first is one else one
                await is_held_up(first)
                name = first.url.removeprefix("http://")
                drain = f"/admin/backends/{name}/drain?move=1&wait_seconds=0"
                await proxy.http.post(drain, headers={"Authorization": "Bearer op"})
                await eventually(lambda: second.served)
                await is_held_up(second)

                events = [event async for event in all_events(call)]
            delivered = sum(b'"content":"w"' in event.replace(b" ", b"") for event in events)
            assert events[-1] == b"data: [DONE]\n\n"
            assert sum(event.startswith(b": resumed") for event in events) == 1
            assert EVENTS < delivered < 2 * EVENTS


async def all_events(call: Call):  # type: ignore[no-untyped-def]
    while event := await call.event():
        yield event


async def is_held_up(engine: Engine) -> None:
    """Wait until the peer has stopped reading; a tenth of the answer must be left."""
    [connection] = [one for one in engine.connections if one.requests[-1].startswith(b"POST /v1")]
    before = -1
    while connection.unsent_bytes != before:
        before = connection.unsent_bytes
        await asyncio.sleep(0.3)
    assert before > EVENTS * len(PADDING) / 10
