"""The program beyond its limits of connections, files, requests, memory and time."""

from __future__ import annotations

import asyncio
import re
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from end_to_end.conftest import StartProxy
from support.engine import Engine
from support.http_client import Call, Reply, chat, send
from support.program import FreshProxy, Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
Start = Callable[..., Awaitable[Proxy]]


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """Holds all requests until the test lets it answer."""
    async with Engine() as engine:
        engine.freed.clear()
        yield engine


@pytest.fixture
def start(start_proxy: StartProxy) -> Start:
    """Starts the program in a thread, so that the engine in this process can answer its polls."""
    return partial(asyncio.to_thread, start_proxy)


async def sample(proxy: Proxy, name: str) -> float:
    page = (await send(proxy.url, "/metrics")).body.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    assert found, page
    return float(found[1])


def is_refusal(reply: Reply) -> bool:
    error = reply.json["error"]
    return (reply.status, error["code"], reply.headers["retry-after"]) == (503, "overloaded", "1")


async def test_excess_requests_are_refused_at_once_but_own_paths_answer(start: Start, engine: Engine) -> None:
    proxy = await start(engine.url, MAX_REQUESTS_IN_FLIGHT="3")
    async with asyncio.TaskGroup() as group:
        served = [group.create_task(send(proxy.url, PATH, chat())) for _ in range(3)]
        await eventually(lambda: engine.count(PATH) == 3)

        for _ in range(10):
            assert is_refusal(await send(proxy.url, PATH, chat()))
            assert (await send(proxy.url, "/health")).status == 200

        assert await sample(proxy, 'inference_proxy_shed_total{reason="requests"}') == 10
        assert await sample(proxy, "inference_proxy_client_requests_in_flight") == 4  # and this request itself
        engine.freed.set()
    assert [task.result().status for task in served] == [200] * 3
    assert (await send(proxy.url, PATH, chat())).status == 200
    assert await sample(proxy, "inference_proxy_client_requests_in_flight") == 1


async def test_bodies_whose_sum_is_too_large_are_refused(start: Start, engine: Engine) -> None:
    proxy = await start(engine.url, MAX_REQUEST_BYTES_IN_FLIGHT="3000000")
    body = b" " * 2_000_000
    async with Call(proxy.url, PATH, body) as first:
        first.send()
        await eventually(lambda: engine.count(PATH) == 1)
        assert await sample(proxy, "inference_proxy_request_body_bytes_in_flight") == len(body)

        assert is_refusal(await send(proxy.url, PATH, body))

        await first.reset()
    await eventually(lambda: is_zero(proxy, "inference_proxy_request_body_bytes_in_flight"))
    engine.freed.set()
    assert (await send(proxy.url, PATH, body)).status == 200


async def is_zero(proxy: Proxy, name: str) -> bool:
    return await sample(proxy, name) == 0


async def test_excess_connection_replaces_an_idle_one_or_gets_503(start: Start, engine: Engine) -> None:
    proxy = await start(engine.url, MAX_CLIENT_CONNECTIONS="10", ADMIN_PORT="0", ADMIN_KEY="k" * 32)
    async with AsyncExitStack() as clients:
        operators = re.search(r"listening on (\S+) for operators", proxy.events)
        assert operators
        idle = [await clients.enter_async_context(Call(proxy.url, "/livez")) for _ in range(10)]
        full = b"inference_proxy_client_connections 10.0"

        async def is_full() -> bool:
            return full in (await send(operators[1], "/metrics")).body

        await eventually(is_full)  # connections are not accepted in the order in which they were opened
        busy = [await clients.enter_async_context(Call(proxy.url, PATH, chat())) for _ in range(10)]
        for call in busy:
            call.send()
        await eventually(lambda: engine.count(PATH) == 10)
        for call in idle:
            assert await call.ended()

        reply = await send(proxy.url, "/livez")
        assert is_refusal(reply)
        assert reply.headers["connection"] == "close"

        page = (await send(operators[1], "/metrics")).body
        assert full in page
        assert b'inference_proxy_shed_total{reason="connections"} 1.0' in page
        engine.freed.set()
        for call in busy:
            assert (await call.reply()).status == 200


def set_file_limit(proxy: Proxy, count: int) -> None:
    _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (count, hard))


def open_files(proxy: Proxy) -> int:
    return len(list(Path(f"/proc/{proxy.pid}/fd").iterdir()))


async def test_running_out_of_files_is_logged_once_and_recovers(start: Start, engine: Engine) -> None:
    proxy = await start(engine.url, MAX_CLIENT_CONNECTIONS="10000")
    async with AsyncExitStack() as clients:
        busy = await clients.enter_async_context(Call(proxy.url, PATH, chat()))
        busy.send()
        await eventually(lambda: engine.count(PATH) == 1)
        set_file_limit(proxy, open_files(proxy))
        await eventually(lambda: "no more files can be opened" in proxy.events)

        began, cpu_began = time.monotonic(), proxy.cpu_seconds
        while time.monotonic() - began < 2.5:
            await knock(proxy)
            await asyncio.sleep(0.05)
        assert proxy.cpu_seconds - cpu_began < 1.0

        set_file_limit(proxy, 1024)
        assert (await send(proxy.url, "/livez")).status == 200
        engine.freed.set()
        assert (await busy.reply()).status == 200
    assert proxy.events.count("no more files can be opened") == 1
    assert "Traceback" not in proxy.events


async def knock(proxy: Proxy) -> None:
    """Connect and send a request; returns everything received."""
    try:
        async with asyncio.timeout(0.2), Call(proxy.url, "/livez") as call:
            call.send()
            await call.head()
    except (OSError, EOFError, TimeoutError):
        pass


async def test_high_memory_use_ends_connections_and_then_refuses_requests(tmp_path: Path, engine: Engine) -> None:
    engine.freed.set()
    limit = str(2**26)  # less than Python with all its modules needs
    with await asyncio.to_thread(FreshProxy, tmp_path, [engine.url], MEMORY_LIMIT_BYTES=limit) as proxy:
        await eventually(lambda: "memory is" in proxy.events)
        reply = await send(proxy.url, PATH, chat())
        assert (reply.status, reply.headers["connection"]) == (200, "close")


async def test_request_timeout_ends_a_request(start: Start, engine: Engine) -> None:
    proxy = await start(engine.url, REQUEST_TIMEOUT_SECONDS="0.5")
    reply = await send(proxy.url, PATH, chat())
    assert (reply.status, reply.json["error"]["code"]) == (504, "request_timeout")
    assert await proxy.in_flight() == 0
