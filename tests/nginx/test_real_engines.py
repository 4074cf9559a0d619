"""Clients of NGINX get replies as they are generated, and their disconnects reach the engines."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from end_to_end.conftest import StartProxy
from nginx.conftest import StartNginx
from nginx.server import Nginx
from support.http_client import Call, chat
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

Leave = Callable[[Call], Awaitable[None]]

LONG = 4000  # tokens; takes many seconds
PATH = "/v1/chat/completions"
TWENTY_MEGABYTES = 20_000_000


@pytest.fixture(autouse=True)
async def is_idle_again(servers: list[LlamaServer]) -> None:
    await eventually(lambda: processing(servers) == 0)


def processing(servers: list[LlamaServer]) -> float:
    """Number of requests that the engines report as running."""
    return sum(server.metrics()["llamacpp:requests_processing"] for server in servers)


async def test_stream_arrives_whole_and_while_it_is_generated(
    nginx: Nginx, servers: list[LlamaServer], secure: bool
) -> None:
    """That no event is held back is tested with a scripted engine."""
    async with nginx.call(PATH, chat(600, stream=True), secure=secure) as stream:
        stream.send()
        assert await stream.head() == 200
        events = [await stream.event()]
        assert processing(servers) == 1
        while event := await stream.event():
            events.append(event)

    assert (stream.complete, events[-1]) == (True, b"data: [DONE]\n\n")
    assert len(events) > 600


@pytest.mark.parametrize("leave", [lambda call: call.leave(), lambda call: call.reset()], ids=["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_disconnect_frees_the_lease_and_the_backend_connection(
    nginx: Nginx, proxy: Proxy, servers: list[LlamaServer], secure: bool, stream: bool, leave: Leave
) -> None:
    async with nginx.call(PATH, chat(LONG if stream else 600, stream=stream), secure=secure) as call:
        call.send()
        await eventually(lambda: processing(servers) == 1)
        if stream:
            assert await call.head() == 200
            assert await call.event()
        assert await proxy.in_flight() == 1

        await leave(call)

        await eventually(lambda: is_free(proxy), seconds=1)
        await eventually(lambda: not any(proxy.connections_to(server.port) for server in servers), seconds=1)
        if stream:  # without a stream, llama.cpp generates to the last token
            await eventually(lambda: processing(servers) == 0, seconds=1)


async def is_free(proxy: Proxy) -> bool:
    return await proxy.in_flight() == 0


async def test_long_prompt_is_answered(nginx: Nginx) -> None:
    body = chat(padding="x" * TWENTY_MEGABYTES)  # an unknown field, which the engine ignores

    reply = await nginx.send(PATH, body)

    assert (reply.status, reply.complete) == (200, True)
    assert reply.json["choices"][0]["finish_reason"] == "length"


async def test_burst_is_spread_over_the_engines(nginx: Nginx, servers: list[LlamaServer]) -> None:
    replies = await asyncio.gather(*(nginx.send(PATH, chat(100)) for _ in range(32)))

    assert {reply.status for reply in replies} == {200}
    shares = Counter(reply.headers["x-backend"] for reply in replies)
    assert shares.keys() == {server.url for server in servers}
    assert max(shares.values()) <= 18


async def test_connections_to_the_proxy_are_reused(
    start_nginx: StartNginx, start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    """Each of the two NGINX workers keeps its own connections."""
    proxy = start_proxy(*servers)
    nginx = start_nginx(proxy.url)
    kept = set()
    for _ in range(16):
        assert (await nginx.send("/v1/models")).status == 200
        kept |= connections_to(proxy)

    assert 1 <= len(kept) <= 2


def connections_to(proxy: Proxy) -> set[str]:
    """The peers of the open connections to ``proxy``."""
    address = f"0100007F:{urlsplit(proxy.url).port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {local for _, local, remote, state, *_ in rows if (remote, state) == (address, "01")}
