"""Every request has exactly one line in the access log, however it ends."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"


async def test_each_request_has_one_line(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path
) -> None:
    [server] = start_servers(1, slow_model, "--http-threads", "32")
    proxy = start_proxy(server, MAX_REQUEST_BODY_BYTES="2000")
    url = server.url
    expected = {
        "own": ("GET", "/docs", 200, "complete", "-"),
        "whole": ("POST", PATH, 200, "complete", url),
        "stream": ("POST", PATH, 200, "complete", url),
        "engine-404": ("GET", "/nothing", 404, "complete", url),
        "blocked": ("POST", "/slots/0", 403, "complete", "-"),
        "too-long": ("POST", PATH, 413, "complete", "-"),
        "left-in-stream": ("POST", PATH, 200, "client_left", url),
        "left-before": ("POST", PATH, 499, "client_left", url),
    }
    many_names = [f"many_names-{number}" for number in range(40)]

    async with asyncio.TaskGroup() as group:
        for name in many_names:
            group.create_task(ask(proxy, name, PATH, chat(2)))
    await ask(proxy, "own", "/docs")
    await ask(proxy, "whole", PATH, chat())
    await ask(proxy, "stream", PATH, chat(stream=True))
    await ask(proxy, "engine-404", "/nothing?secret=1")
    await ask(proxy, "blocked", "/slots/0?action=erase", {})
    await ask(proxy, "too-long", PATH, b"x" * 2001)
    await leave(proxy, "left-in-stream", chat(4000, stream=True), when=Call.head)
    await eventually(lambda: is_processing(server, 0))
    await leave(proxy, "left-before", chat(1000), when=lambda _: eventually(lambda: is_processing(server, 1)))
    await eventually(lambda: len(proxy.access_lines) >= len(expected) + len(many_names))
    proxy.stop()

    lines = proxy.access_lines
    assert Counter(line.request_id for line in lines if line.request_id in many_names) == dict.fromkeys(many_names, 1)
    rest = [line for line in lines if line.request_id not in many_names]
    seen = {line.request_id: (line.method, line.path, line.status, line.outcome, line.backend) for line in rest}
    assert len(rest) == len(expected)
    assert seen == expected


async def ask(proxy: Proxy, name: str, target: str, body: object = None) -> None:
    assert (await send(proxy.url, target, body, headers={"x-request-id": name})).complete


async def leave(proxy: Proxy, name: str, body: object, *, when: Callable[[Call], Awaitable[object]]) -> None:
    async with Call(proxy.url, PATH, body, headers={"x-request-id": name}) as call:
        call.send()
        await when(call)


def is_processing(server: LlamaServer, count: int) -> bool:
    return server.metrics()["llamacpp:requests_processing"] == count


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_ipv6_address_is_logged_apart_from_its_port(
    tmp_path: Path, log_format: str, shared_server: LlamaServer
) -> None:
    with Proxy(tmp_path, [shared_server.url], HOST="::1", LOG_FORMAT=log_format) as proxy:
        await ask(proxy, "ours", "/docs")
        await eventually(lambda: (tmp_path / "stdout").read_text().endswith("\n"))

    line = (tmp_path / "stdout").read_text()
    client = json.loads(line)["client"] if log_format == "json" else line.split(" ")[1]
    assert re.fullmatch(r"\[::1\]:[0-9]+", client)
