"""Requests wait in the proxy while all slots are occupied, and leave with their clients, on real servers."""

from __future__ import annotations

import asyncio
import json

from end_to_end.conftest import StartProxy
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
EXACT = {"BACKEND_QUEUE_ALLOWANCE": "0", "METRICS_CACHE_TTL_SECONDS": "0.5"}


async def waiting(proxy: Proxy, count: int) -> bool:
    page = (await send(proxy.url, "/metrics")).body.decode()
    return f"inference_proxy_queue_requests {count}.0" in page


async def test_server_never_exceeds_its_slots_and_all_requests_are_served(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, **EXACT)
    seen: list[float] = []

    async def watch() -> None:
        while True:
            seen.extend(server.metrics()["llamacpp:requests_deferred"] for server in two_slow_servers)
            await asyncio.sleep(0.05)

    watcher = asyncio.get_running_loop().create_task(watch())
    replies = await asyncio.gather(*(send(proxy.url, PATH, chat(20)) for _ in range(16)))
    watcher.cancel()

    assert {reply.status for reply in replies} == {200}
    assert max(seen) == 0


async def test_client_that_leaves_the_queue_is_never_served(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    server = two_slow_servers[0]
    proxy = start_proxy(server, **EXACT)
    async with (
        Call(proxy.url, PATH, chat(4000, stream=True)) as one,
        Call(proxy.url, PATH, chat(400, stream=True)) as two,
    ):
        for stream in (one, two):
            stream.send()
            assert await stream.head() == 200
        async with Call(proxy.url, PATH, chat()) as leaver, Call(proxy.url, PATH, chat(3)) as stayer:
            leaver.send()
            await eventually(lambda: waiting(proxy, 1))
            stayer.send()
            await eventually(lambda: waiting(proxy, 2))

            await leaver.leave()
            await eventually(lambda: waiting(proxy, 1))

            assert (await stayer.reply()).status == 200
    # The engine counts prompts that it has read, so the request whose client left is not among the three.
    line = next(line for line in proxy.access_lines if line.status == 499)
    assert line.backend == "-"


async def test_queued_stream_gets_its_position_on_request(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(two_slow_servers[0], **EXACT)
    async with (
        Call(proxy.url, PATH, chat(3000, stream=True)) as one,
        Call(proxy.url, PATH, chat(3000, stream=True)) as two,
    ):
        for stream in (one, two):
            stream.send()
            assert await stream.head() == 200
        asking = {"x-queue-updates": "true"}
        async with Call(proxy.url, PATH, chat(3, stream=True), headers=asking) as third:
            third.send()
            assert await third.head() == 200
            assert await third.event() == b": queued position=1\n\n"
            await one.leave()
            events = []
            while event := await third.event():
                events.append(event)

    updates = [event for event in events if event.startswith(b":")]
    answer = [event for event in events if not event.startswith(b":")]
    assert all(event.startswith(b": queued position=1") for event in updates)
    assert answer[-1] == DONE
    assert third.complete
    assert json.loads(answer[0].removeprefix(b"data: "))["object"] == "chat.completion.chunk"


async def test_engine_error_after_a_queue_update_is_an_event(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(two_slow_servers[0], **EXACT)
    async with (
        Call(proxy.url, PATH, chat(200, stream=True)) as one,
        Call(proxy.url, PATH, chat(200, stream=True)) as two,
    ):
        for stream in (one, two):
            stream.send()
            assert await stream.head() == 200
        wrong = {"stream": True, "messages": "not a list"}
        async with Call(proxy.url, PATH, wrong, headers={"x-queue-updates": "true"}) as third:
            third.send()
            assert await third.head() == 200
            events = []
            while event := await third.event():
                events.append(event)

    assert events[0].startswith(b": queued")
    error = json.loads(events[-1].removeprefix(b"data: "))["error"]
    assert error["type"] == "invalid_request_error"


async def test_full_queue_is_429_and_long_wait_is_503_with_retry_after(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(two_slow_servers[0], **EXACT, MAX_QUEUED_REQUESTS="1", QUEUE_TIMEOUT_SECONDS="1")
    async with (
        Call(proxy.url, PATH, chat(2000, stream=True)) as one,
        Call(proxy.url, PATH, chat(2000, stream=True)) as two,
    ):
        for stream in (one, two):
            stream.send()
            assert await stream.head() == 200
        async with Call(proxy.url, PATH, chat()) as late:
            late.send()
            await eventually(lambda: waiting(proxy, 1))
            full = await send(proxy.url, PATH, chat())
            too_late = await late.reply()

    assert (full.status, full.json["error"]["code"]) == (429, "queue_full")
    assert (too_late.status, too_late.json["error"]["code"]) == (503, "queue_timeout")
    for reply in (full, too_late):
        assert 1 <= int(reply.headers["retry-after"]) <= 120
        assert 1000 <= int(reply.headers["retry-after-ms"]) <= 120_000


async def test_queued_stream_gets_heartbeats(start_proxy: StartProxy, two_slow_servers: list[LlamaServer]) -> None:
    proxy = start_proxy(two_slow_servers[0], **EXACT, STREAM_HEARTBEAT_SECONDS="0.1")
    async with (
        Call(proxy.url, PATH, chat(300, stream=True)) as one,
        Call(proxy.url, PATH, chat(300, stream=True)) as two,
    ):
        for stream in (one, two):
            stream.send()
            assert await stream.head() == 200
        async with Call(proxy.url, PATH, chat(3, stream=True)) as third:
            third.send()
            assert await third.head() == 200
            events = []
            while event := await third.event():
                events.append(event)

    answer = events[events.count(b": keep-alive\n\n") :]
    assert len(answer) < len(events)
    assert not any(event.startswith(b":") for event in answer)
    assert answer[-1] == DONE
    assert third.complete
