"""How the program starts and stops."""

from __future__ import annotations

import re
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.conftest import StartProxy
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import FreshProxy, Proxy, run_command
from support.waiting import eventually

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(slow_model: Path) -> Iterator[LlamaServer]:
    with LlamaServer(slow_model, "--slots", "2", "--context", "8192") as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_shutdown_lets_a_stream_finish(
    start_proxy: StartProxy, server: LlamaServer, number: signal.Signals
) -> None:
    proxy = start_proxy(server)
    async with Call(proxy.url, PATH, chat(300, stream=True)) as stream, Call(proxy.url, "/livez") as idle:
        stream.send()
        assert await stream.head() == 200

        proxy.signal(number)
        await eventually(lambda: refuses_connections(proxy))
        reply = await stream.reply()

        assert reply.complete
        assert reply.body.endswith(b"data: [DONE]\n\n")
        assert reply.body.count(b'"content":"') == 300
        assert await proxy.ended() == 0
        assert await idle.ended()
    [line] = proxy.access_lines
    assert (line.path, line.status, line.outcome) == (PATH, 200, "complete")


WATCHED = "/readyz"


async def probe_readiness(proxy: Proxy) -> None:
    """As an orchestrator does, which notices in this way that the proxy stops."""
    await eventually(lambda: is_ready(proxy))


async def is_ready(proxy: Proxy) -> bool:
    return (await send(proxy.url, WATCHED)).status == 200


async def test_new_requests_are_served_during_the_grace_period(start_proxy: StartProxy, server: LlamaServer) -> None:
    proxy = start_proxy(server, DRAIN_GRACE_SECONDS="1.5")  # LC01
    async with Call(proxy.url, PATH, chat(300, stream=True)) as stream, Call(proxy.url, "/livez") as idle:
        await probe_readiness(proxy)
        stream.send()
        assert await stream.head() == 200

        proxy.signal(signal.SIGTERM)
        began = time.monotonic()
        await eventually(lambda: is_not_ready(proxy), seconds=1)
        for _ in range(2):
            reply = await send(proxy.url, PATH, chat(1))
            assert (reply.status, reply.headers["connection"]) == (200, "close")

        assert (await stream.reply()).complete
        assert await idle.ended()
        assert await proxy.ended() == 0
        assert time.monotonic() - began >= 1.5


async def is_not_ready(proxy: Proxy) -> bool:
    return (await send(proxy.url, WATCHED)).status == 503


@pytest.mark.parametrize(("number", "is_watched"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
async def test_there_is_no_grace_period_without_readiness_probes_or_after_sigint(
    start_proxy: StartProxy, server: LlamaServer, number: signal.Signals, is_watched: bool
) -> None:
    proxy = start_proxy(server, DRAIN_GRACE_SECONDS="30")
    if is_watched:
        await probe_readiness(proxy)

    proxy.signal(number)

    await eventually(lambda: refuses_connections(proxy), seconds=5)
    assert await proxy.ended() == 0


async def test_second_signal_within_the_grace_period_stops_at_once(
    start_proxy: StartProxy, server: LlamaServer
) -> None:
    proxy = start_proxy(server, DRAIN_GRACE_SECONDS="30")  # LC02
    async with Call(proxy.url, PATH, chat(4000, stream=True)) as stream:
        await probe_readiness(proxy)
        stream.send()
        assert await stream.head() == 200
        proxy.signal(signal.SIGTERM)
        await eventually(lambda: is_not_ready(proxy))

        proxy.signal(signal.SIGTERM)

        assert await proxy.ended() == 0
        reply = await stream.reply()
    assert not reply.complete
    assert b'"code": "shutting_down"' in reply.body


async def test_second_signal_stops_at_once(start_proxy: StartProxy, server: LlamaServer) -> None:
    proxy = start_proxy(server)
    async with Call(proxy.url, PATH, chat(4000, stream=True)) as stream:
        stream.send()
        assert await stream.head() == 200
        proxy.signal(signal.SIGTERM)
        await eventually(lambda: refuses_connections(proxy))

        proxy.signal(signal.SIGTERM)

        assert await proxy.ended() == 0
        reply = await stream.reply()
    assert not reply.complete
    assert b"[DONE]" not in reply.body
    await eventually(lambda: server.metrics()["llamacpp:requests_processing"] == 0)
    [line] = proxy.access_lines
    assert (line.path, line.status, line.outcome) == (PATH, 200, "broken")


async def test_draining_ends_at_its_deadline(start_proxy: StartProxy, server: LlamaServer) -> None:
    proxy = start_proxy(server, DRAIN_TIMEOUT_SECONDS="1")
    async with Call(proxy.url, PATH, chat(4000, stream=True)) as stream:
        stream.send()
        assert await stream.head() == 200

        proxy.signal(signal.SIGTERM)

        assert await proxy.ended() == 0
        reply = await stream.reply()
        assert not reply.complete
        assert reply.body.endswith(b"\n\n")
        assert b'"code": "shutting_down"' in reply.body.splitlines()[-2]
        assert b"[DONE]" not in reply.body
    [line] = proxy.access_lines
    assert (line.path, line.outcome) == (PATH, "broken")


async def refuses_connections(proxy: Proxy) -> bool:
    try:
        async with Call(proxy.url, "/livez"):
            return False
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was in the backlog when the listener closed
        return True


def test_port_in_use_is_one_line(shared_proxy: Proxy, tmp_path: Path) -> None:
    port = shared_proxy.url.rpartition(":")[2]

    done = run_command(tmp_path, "serve", PORT=port, BACKENDS="http://127.0.0.1:9")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use" in done.stderr


def test_open_file_limit_is_raised_to_the_hard_limit(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))  # inherited by processes started from now on
    try:
        proxy = FreshProxy(tmp_path, ["http://127.0.0.1:9"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with proxy:
        limits = Path(f"/proc/{proxy.pid}/limits").read_text()
    assert re.search(rf"^Max open files +{hard} +{hard} ", limits, re.MULTILINE), limits
