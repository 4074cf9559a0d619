"""A server that dies under load breaks only its own streams."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import openai

from end_to_end.conftest import StartProxy
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
SOON = {"METRICS_CACHE_TTL_SECONDS": "0.5", "MAX_ALLOWED_REQUEST_QUEUE": "1000", "MAX_ALLOWED_DEFERRED": "1000"}
SOON |= {"BACKEND_QUEUE_ALLOWANCE": "1000", "SLOW_START_SECONDS": "0", "STREAM_RESUME": "off"}
DONE = b"data: [DONE]\n\n"


@dataclass
class Stream:
    """A stream that is being read."""

    backend: str = ""
    events: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def under_way(self) -> bool:
        return len(self.events) > 1 and DONE not in self.events

    async def read(self, proxy: Proxy, tokens: int) -> None:
        async with Call(proxy.url, PATH, chat(tokens, stream=True)) as call:
            call.send()
            assert await call.head() == 200
            self.backend = call.headers["x-backend"]
            while event := await call.event():
                self.events.append(event)
            self.complete = call.complete


async def test_killing_a_server_under_load_breaks_only_its_streams(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    victim, other = two_slow_servers
    proxy = start_proxy(victim, other, **SOON)
    streams = [Stream() for _ in range(20)]
    async with asyncio.TaskGroup() as group:
        for stream in streams[:6]:
            group.create_task(stream.read(proxy, 400))
        await eventually(lambda: sum(stream.under_way for stream in streams if stream.backend == victim.url) == 2)
        whole = [group.create_task(send(proxy.url, PATH, chat(20))) for _ in range(20)]
        for stream in streams[6:]:
            group.create_task(stream.read(proxy, 20))
        await eventually(lambda: victim.metrics()["llamacpp:requests_deferred"] > 10)
        cut_off = [stream for stream in streams if stream.backend == victim.url and stream.under_way]
        unanswered = [task for task in whole if not task.done()]

        victim.kill()

        after = [group.create_task(send(proxy.url, PATH, chat(5))) for _ in range(5)]
        await eventually(lambda: only_available(proxy, other))

    assert len(unanswered) == 20
    assert cut_off
    for reply in (task.result() for task in (*whole, *after)):
        assert answered_by(reply) == other.url
    for stream in streams:
        if stream in cut_off:
            assert_reported_as_broken(stream)
        else:
            assert (stream.backend, stream.events[-1], stream.complete) == (other.url, DONE, True)


async def only_available(proxy: Proxy, server: LlamaServer) -> bool:
    return await proxy.available() == {server.url}


def answered_by(reply: Reply) -> str:
    """The backend that gave this complete answer."""
    assert (reply.status, reply.complete) == (200, True)
    assert reply.json["choices"][0]["finish_reason"] == "length"
    return reply.headers["x-backend"]


def assert_reported_as_broken(stream: Stream) -> None:
    """The last event reports the failure; neither the stream nor the body has a regular end."""
    assert DONE not in stream.events
    assert not stream.complete
    error = json.loads(stream.events[-1].removeprefix(b"data: "))["error"]
    assert error["code"] == "backend_disconnected"
    assert "127.0.0.1" not in error["message"]


async def test_server_that_comes_back_is_used_again(
    start_proxy: StartProxy, two_servers: list[LlamaServer], tiny_model: Path
) -> None:
    victim, other = two_servers
    proxy = start_proxy(victim, other, **SOON)

    victim.kill()
    while_down = [answered_by(await send(proxy.url, PATH, chat())) for _ in range(6)]
    with LlamaServer(tiny_model, port=victim.port):
        await eventually(lambda: is_all_available(proxy))
        again = {answered_by(reply) for reply in [await send(proxy.url, PATH, chat()) for _ in range(30)]}

    assert set(while_down) == {other.url}
    assert again == {victim.url, other.url}


async def is_all_available(proxy: Proxy) -> bool:
    health = await proxy.health()
    return bool(health["status"] == "ok")


async def test_openai_sdk_raises_when_the_server_of_its_stream_dies(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, STREAM_RESUME="off")
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "kin"}], max_tokens=4000, stream=True
        )
        async with stream:
            await anext(stream)
            serving = stream.response.headers["x-backend"]
            next(server for server in two_slow_servers if server.url == serving).kill()
            try:
                async for _ in stream:
                    pass
            except openai.APIError as error:
                raised = error
    assert raised.code == "backend_disconnected"
