"""Requests go to the backend with the least load, whether or not engines report it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
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
        options = ("--slots", "4", "--context", "65536", "--http-threads", "32")
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


async def spread(proxy: Proxy, servers: Sequence[LlamaServer], count: int) -> dict[str, float]:
    """How many of ``count`` requests that are sent at once each backend gets while it answers none of them.

    On a slow machine, answers would end before the last request is sent, and make room for more. The servers are
    therefore frozen meanwhile, which also leaves the CPU to the proxy.
    """
    shares: dict[str, float] = {}

    async def are_sent() -> bool:
        shares.update({one.url: await proxy.metric("requests_in_flight", backend=one.url) for one in servers})
        return sum(shares.values()) == count

    async with AsyncExitStack() as stack:
        calls = [
            await stack.enter_async_context(Call(proxy.url, "/v1/chat/completions", chat(1))) for _ in range(count)
        ]
        for server in servers:
            server.freeze()
            stack.callback(server.thaw)
        for call in calls:
            call.send()
        await eventually(are_sent)
        for server in servers:
            server.thaw()
        assert {(await call.reply()).status for call in calls} == {200}
    return shares


async def test_concurrent_requests_use_both_backends(start_proxy: StartProxy, two_servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*two_servers)

    shares = await burst(proxy, 8, chat(50))

    assert shares.keys() == {server.url for server in two_servers}


async def test_burst_between_two_polls_is_spread_evenly(
    start_proxy: StartProxy, four_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*four_servers, **ONCE, **NEVER_BUSY)

    shares = await spread(proxy, four_servers, 64)

    assert set(shares.values()) == {16}


async def test_burst_takes_foreign_load_into_account(start_proxy: StartProxy, four_servers: list[LlamaServer]) -> None:
    idle, *loaded = four_servers
    async with AsyncExitStack() as foreign:
        for server in loaded * 3:
            # An answer longer than the start of the proxy on a busy machine. It ends when its client leaves.
            call = await foreign.enter_async_context(
                Call(server.url, "/v1/chat/completions", chat(16_000, stream=True))
            )
            call.send()
        for server in loaded:
            await eventually(partial(processes, server, 3))
        proxy = start_proxy(*four_servers, **ONCE, **NEVER_BUSY)
        reported = {url: one["metrics"]["requests_processing"] for url, one in (await proxy.details()).items()}
        assert reported == {idle.url: 0, **{server.url: 3 for server in loaded}}

        shares = await spread(proxy, four_servers, 60)

    assert sorted(shares[url] + reported[url] for url in reported) == [17, 17, 17, 18]


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
