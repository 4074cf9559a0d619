"""Loading, full, frozen and absent backends get no requests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.1"}


async def backends_of(proxy: Proxy, count: int) -> set[str]:
    """The backends that answer ``count`` sequential requests."""
    replies = [await send(proxy.url, PATH, chat()) for _ in range(count)]
    assert {reply.status for reply in replies} == {200}
    return {reply.headers["x-backend"] for reply in replies}


async def test_loading_server_gets_no_request_until_it_is_ready(
    start_proxy: StartProxy, start_servers: StartServers, tiny_model: Path, large_model: Path, free_port: int
) -> None:
    [ready] = start_servers(1, tiny_model, "--alias", "m")
    newcomer_url = f"http://127.0.0.1:{free_port}"
    proxy = start_proxy(ready, newcomer_url, **QUICK)

    while_loading = set()
    with LlamaServer(large_model, "--context", "16384", "--alias", "m", port=free_port, wait=False) as newcomer:
        await eventually(lambda: newcomer.status() == 503)
        while True:
            served_by = await backends_of(proxy, 1)
            if newcomer.status() != 503:
                break
            while_loading |= served_by
        newcomer.wait_until_ready()
        await eventually(lambda: has(proxy, ready, newcomer))
        afterwards = await backends_of(proxy, 20)

    assert while_loading == {ready.url}
    assert afterwards == {ready.url, newcomer.url}
    assert "broke a connection" not in proxy.events


async def has(proxy: Proxy, *servers: LlamaServer) -> bool:
    return await proxy.available() == {server.url for server in servers}


async def test_fleet_that_only_loads_is_not_ready(start_proxy: StartProxy, large_model: Path, free_port: int) -> None:
    """The engine's own 503 never reaches a client: it describes one server, not the fleet."""
    proxy = start_proxy(f"http://127.0.0.1:{free_port}", **QUICK)
    with LlamaServer(large_model, port=free_port, wait=False) as server:
        seen = [await send(proxy.url, PATH, chat(1)) for _ in range(3)]
        while (reply := await send(proxy.url, PATH, chat(1))).status != 200:
            seen.append(reply)
        assert reply.headers["x-backend"] == server.url

    assert {(reply.status, reply.json["error"]["code"]) for reply in seen} == {(503, "no_backend_available")}


async def test_full_server_gets_no_request(start_proxy: StartProxy, two_slow_servers: list[LlamaServer]) -> None:
    full, free = two_slow_servers
    proxy = start_proxy(full, free, MAX_ALLOWED_REQUEST_QUEUE="1", QUEUE_TIMEOUT_SECONDS="0.5", **QUICK)
    async with AsyncExitStack() as foreign:
        await occupy(full, foreign)
        await eventually(lambda: has(proxy, free))
        assert await backends_of(proxy, 5) == {free.url}
        assert (await proxy.details())[full.url]["live"]

        await occupy(free, foreign)
        await eventually(lambda: has(proxy))
        reply = await send(proxy.url, PATH, chat())
        assert (reply.status, reply.json["error"]["code"]) == (503, "queue_timeout")
        assert reply.json["error"].keys() >= {"message", "type", "code", "param"}
        assert int(reply.headers["retry-after"]) >= 1
        assert (await send(proxy.url, "/readyz")).status == 200
        assert (await proxy.health())["status"] == "unavailable"

    await eventually(lambda: has(proxy, full, free))
    assert await backends_of(proxy, 20) == {full.url, free.url}


async def occupy(server: LlamaServer, stack: AsyncExitStack) -> None:
    """Occupy both slots of ``server`` with long streams that bypass the proxy."""
    for _ in range(2):
        stream = await stack.enter_async_context(Call(server.url, PATH, chat(4000, stream=True)))
        stream.send()
        assert await stream.head() == 200


async def test_frozen_server_delays_no_request_to_another(
    start_proxy: StartProxy, two_servers: list[LlamaServer]
) -> None:
    frozen, other = two_servers
    proxy = start_proxy(frozen, other, METRICS_CACHE_TTL_SECONDS="0.5")
    frozen.freeze()
    async with AsyncExitStack() as stack:
        # Requests sent to the frozen server wait there. Later ones must not queue behind them.
        waiting = [await stack.enter_async_context(Call(proxy.url, PATH, chat())) for _ in range(6)]
        for call in waiting:
            call.send()
        await eventually(lambda: has_requests_on(proxy, frozen))
        first_poll = (await proxy.details())[other.url]["metrics"]["timestamp"]

        slowest = 0.0
        async for seconds in answer_times_until_only(proxy, other):
            slowest = max(slowest, seconds)

        last_poll = (await proxy.details())[other.url]["metrics"]["timestamp"]
        assert slowest < 10  # a request queued behind them would never end
        assert last_poll > first_poll
        frozen.thaw()
        assert [(await call.reply()).status for call in waiting] == [200] * 6
    await eventually(lambda: has(proxy, frozen, other))


async def has_requests_on(proxy: Proxy, server: LlamaServer) -> bool:
    return bool((await proxy.details())[server.url]["requests_in_flight"])


async def answer_times_until_only(proxy: Proxy, server: LlamaServer) -> AsyncIterator[float]:
    """Send sequential requests until only ``server`` is available; yields the seconds each took."""
    give_up_at = time.monotonic() + 30
    while not await has(proxy, server):
        assert time.monotonic() < give_up_at
        began = time.monotonic()
        reply = await send(proxy.url, PATH, chat())
        yield time.monotonic() - began
        assert (reply.status, reply.headers["x-backend"]) == (200, server.url)


async def test_fleet_without_a_live_backend_is_503_at_once_and_recovers(
    start_proxy: StartProxy, tiny_model: Path, free_port: int
) -> None:
    proxy = start_proxy(f"http://127.0.0.1:{free_port}")
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        reply = await send(proxy.url, PATH, chat())
        seconds.append(time.monotonic() - began)
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_backend_available")
        assert int(reply.headers["retry-after"]) >= 1
    assert min(seconds) < 5  # that is, they did not wait in the queue
    assert (await send(proxy.url, "/readyz")).status == 503
    assert (await send(proxy.url, "/livez")).status == 200

    with LlamaServer(tiny_model, port=free_port):
        await eventually(lambda: is_ready(proxy))
        assert (await send(proxy.url, PATH, chat())).status == 200


async def is_ready(proxy: Proxy) -> bool:
    return (await send(proxy.url, "/readyz")).status == 200


async def test_anthropic_clients_get_errors_in_their_format(start_proxy: StartProxy, free_port: int) -> None:
    proxy = start_proxy(f"http://127.0.0.1:{free_port}")

    reply = await send(proxy.url, "/v1/messages", {"messages": [], "max_tokens": 1}, headers={"x-request-id": "a.1"})

    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "No backend is available."},
        "request_id": "a.1",
    }
