"""Requests go to the backend with the least load, whether or not engines report it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path

import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

ONCE = {"METRICS_CACHE_TTL_SECONDS": "60"}  # no second poll during these tests
NEVER_BUSY = {
    "MAX_ALLOWED_REQUEST_QUEUE": "1000",
    "MAX_ALLOWED_DEFERRED": "1000",
    "BACKEND_QUEUE_ALLOWANCE": "1000",
}


@pytest.fixture(scope="module")
def four_servers(slow_model: Path) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        options = ("--slots", "4", "--context", "8192", "--http-threads", "32")
        yield [stack.enter_context(LlamaServer(slow_model, *options)) for _ in range(4)]


def processes(server: LlamaServer, count: int) -> bool:
    return server.metrics()["llamacpp:requests_processing"] == count


async def burst(proxy: Proxy, count: int, body: object) -> Counter[str]:
    """Send ``count`` requests at once; returns how many each backend answered."""
    async with AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(Call(proxy.url, "/v1/chat/completions", body)) for _ in range(count)]
        for call in calls:
            call.send()
        replies = await asyncio.gather(*(call.reply() for call in calls))
    assert {reply.status for reply in replies} == {200}
    return Counter(reply.headers["x-backend"] for reply in replies)


async def test_concurrent_requests_use_both_backends(start_proxy: StartProxy, two_servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*two_servers)

    shares = await burst(proxy, 8, chat(50))

    assert shares.keys() == {server.url for server in two_servers}


async def test_burst_between_two_polls_is_spread_evenly(
    start_proxy: StartProxy, four_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*four_servers, **ONCE, **NEVER_BUSY)

    shares = await burst(proxy, 64, chat(10))

    assert sum(shares.values()) == 64
    assert max(shares.values()) <= 18


async def test_burst_takes_foreign_load_into_account(start_proxy: StartProxy, four_servers: list[LlamaServer]) -> None:
    idle, *loaded = four_servers
    async with AsyncExitStack() as foreign:
        for server in loaded * 3:
            call = await foreign.enter_async_context(Call(server.url, "/v1/chat/completions", chat(2000, stream=True)))
            call.send()
        for server in loaded:
            await eventually(partial(processes, server, 3))
        proxy = start_proxy(*four_servers, **ONCE, **NEVER_BUSY)
        reported = {url: one["metrics"]["requests_processing"] for url, one in (await proxy.details()).items()}
        assert reported == {idle.url: 0, **{server.url: 3 for server in loaded}}
    # Without another poll, the proxy still counts the foreign requests, which no longer use CPU time during the burst.

    shares = await burst(proxy, 60, chat(150))  # long enough that no answer ends before the last request is sent

    assert sum(shares.values()) == 60
    assert 16 <= shares[idle.url] <= 20


async def test_servers_without_metrics_are_balanced_by_leases(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path
) -> None:
    servers = start_servers(2, slow_model, "--no-metrics")
    proxy = start_proxy(*servers)
    assert await proxy.available() == {server.url for server in servers}
    async with Call(proxy.url, "/v1/chat/completions", chat(2000, stream=True)) as stream:
        stream.send()
        assert await stream.head() == 200

        others = {(await send(proxy.url, "/v1/chat/completions", chat())).headers["x-backend"] for _ in range(8)}

        assert others == {server.url for server in servers} - {stream.headers["x-backend"]}
