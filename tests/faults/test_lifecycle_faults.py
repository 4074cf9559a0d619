"""Proxies and backends that are started, stopped, killed and replaced while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from faults.conftest import CHAT
from inference_engine_proxy_server.processes.host import raise_file_limit
from support.engine import EVENT, STREAM_HEAD, Engine, chunk
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy, environment, program, started
from support.running_proxy import RunningProxy
from support.waiting import eventually

LAST_CHUNK = b"0\r\n\r\n"


class Streams:
    """A stream that continues until the test gives its connection a cue."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def __call__(self, connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(EVENT))
        await self.may_end.wait()
        connection.send(chunk(EVENT), LAST_CHUNK)


async def is_ready(url: str) -> bool:
    return (await send(url, "/readyz")).status == 200


# --- the proxy stops


@pytest.mark.slow_faults
async def test_lc01_streams_may_finish_and_unfinished_ones_get_an_error_event(tmp_path: Path) -> None:
    raise_file_limit()
    short, endless = Streams(), Streams()

    async def answer(connection: EngineConnection) -> None:
        await (short if b'"user": "short"' in connection.requests[-1] else endless)(connection)

    settings = {"DRAIN_GRACE_SECONDS": "0.7", "DRAIN_TIMEOUT_SECONDS": "1", "MAX_ALLOWED_REQUEST_QUEUE": "1000"}
    async with Engine(answer, owner="vllm") as engine, AsyncExitStack() as stack:
        proxy = await started(stack, tmp_path / "proxy", engine, **settings)
        calls = [
            await stack.enter_async_context(Call(proxy.url, CHAT, chat(stream=True, user=user)))
            for user in ("short", "endless")
            for _ in range(100)
        ]
        for call in calls:
            call.send()
        assert [await call.head() for call in calls] == [200] * 200
        assert await is_ready(proxy.url)

        proxy.signal(signal.SIGTERM)
        began = time.monotonic()
        await eventually(lambda: is_not_ready(proxy), 0.5)
        late = await send(proxy.url, "/livez")  # served during the grace period
        assert (late.status, late.headers["connection"]) == (200, "close")
        short.may_end.set()
        ended = [await call.reply() for call in calls[:100]]
        assert {(reply.complete, reply.body) for reply in ended} == {(True, EVENT + EVENT)}

        cut = [await call.reply() for call in calls[100:]]
        assert 1.7 <= time.monotonic() - began < 5
        assert {reply.complete for reply in cut} == {False}
        assert all(reply.body.startswith(EVENT) and b'"code": "shutting_down"' in reply.body for reply in cut)
        assert await proxy.ended() == 0
        await eventually(lambda: not engine.open_requests)
        outcomes = [line.outcome for line in proxy.access_lines if line.path == CHAT]
        assert sorted(outcomes) == ["broken"] * 100 + ["complete"] * 100


async def is_not_ready(proxy: RunningProxy) -> bool:
    return not await is_ready(proxy.url)


async def test_lc03_killed_proxy_frees_its_engines_and_restarts_at_once(tmp_path: Path, free_port: int) -> None:
    async with Engine(Streams()) as engine, AsyncExitStack() as stack:
        first = await started(stack, tmp_path, engine, PORT=str(free_port))
        async with first.call() as call:
            call.send()
            assert (await call.head(), await call.event()) == (200, EVENT)
            first.signal(signal.SIGKILL)
            assert await first.ended() == -signal.SIGKILL
            await eventually(lambda: not engine.open_requests, 1)
            assert not (await call.reply()).complete

        async with program(tmp_path, engine, PORT=str(free_port)) as second:
            assert second.url == first.url
            async with second.call() as call:
                call.send()
                assert await call.head() == 200


class LoadBalancer:
    """Sends each request to the next proxy that reports ready, as a load balancer does."""

    def __init__(self, *urls: str) -> None:
        self.urls = list(urls)
        self.ready: list[str] = []
        self._turn = 0

    async def watch(self) -> None:
        while True:
            ready = []
            for url in self.urls:
                with contextlib.suppress(OSError):
                    ready += [url] * await is_ready(url)
            self.ready = ready
            await asyncio.sleep(0.05)

    async def post(self) -> Reply:
        self._turn += 1
        return await send(self.ready[self._turn % len(self.ready)], CHAT, chat())


@pytest.mark.slow_faults
async def test_lc04_replacing_one_of_two_proxies_behind_a_load_balancer_loses_no_request(tmp_path: Path) -> None:
    async with Engine(Slow(0.05), owner="vllm") as engine, AsyncExitStack() as stack:
        old, other = [
            await started(stack, tmp_path / name, engine, DRAIN_GRACE_SECONDS="1") for name in ("old", "other")
        ]
        balancer = LoadBalancer(old.url, other.url)
        statuses: list[int] = []
        is_over = False

        async def asks_again_and_again() -> None:
            while not is_over:
                statuses.append((await balancer.post()).status)

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(balancer.watch())
            await eventually(lambda: len(balancer.ready) == 2)
            clients = [group.create_task(asks_again_and_again()) for _ in range(10)]
            await asyncio.sleep(0.5)
            new = await started(stack, tmp_path / "new", engine)
            assert (await send(new.url, CHAT, chat())).status == 200  # it polled its backends before it listened
            balancer.urls.append(new.url)
            old.signal(signal.SIGTERM)
            assert await old.ended() == 0
            await asyncio.sleep(0.5)
            is_over = True
            await asyncio.wait(clients)
            watching.cancel()
        assert set(statuses) == {200}
        for proxy in (other, new):
            assert [line for line in proxy.access_lines if line.path == CHAT and line.status == 200]
            await asyncio.to_thread(proxy.stop)


class Slow:
    """Answers after a delay."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __call__(self, connection: EngineConnection) -> None:
        await asyncio.sleep(self._seconds)
        connection.send(http_reply())


# --- the fleet changes


def fleet_file(*engines: Engine, prefix: str = "engine") -> str:
    lines = (f"  - {{url: {engine.url}, name: {prefix}-{number}}}\n" for number, engine in enumerate(engines))
    return "backends:\n" + "".join(lines)


async def test_lc06_removed_backend_finishes_its_streams_and_is_then_polled_no_more(tmp_path: Path) -> None:
    streams = Streams()
    file = tmp_path / "fleet.yaml"
    async with Engine(streams) as old, Engine(streams) as new:
        file.write_text(fleet_file(old))
        settings = {"CONFIG_FILE": str(file), "BACKENDS": "", "METRICS_CACHE_TTL_SECONDS": "0.1", "ADMIN_KEY": "k" * 32}
        async with program(tmp_path / "proxy", **settings) as proxy, proxy.call() as call:
            call.send()
            assert (await call.head(), await call.event()) == (200, EVENT)

            file.write_text(fleet_file(old, prefix="renamed"))
            proxy.signal(signal.SIGHUP)
            await eventually(lambda: names(proxy, "renamed-0"))
            assert (await proxy.backend(old))["requests_in_flight"] == 1

            file.write_text(fleet_file(new))
            proxy.signal(signal.SIGHUP)
            await eventually(lambda: names(proxy, "engine-0"))
            await proxy.becomes(new, "up")
            assert new.url in (await send(proxy.url, "/metrics")).body.decode()
            assert f'"{old.url}"' not in gauges((await send(proxy.url, "/metrics")).body.decode())

            streams.may_end.set()
            reply = await call.reply()
            assert (reply.complete, reply.body) == (True, EVENT)

            async def is_polled_no_more() -> bool:
                asked, asked_new = len(old.requests), len(new.requests)
                await eventually(lambda: len(new.requests) > asked_new + 12)
                return len(old.requests) == asked

            await eventually(is_polled_no_more)
            assert (await send(proxy.url, CHAT, chat())).headers["x-backend"] == new.url


async def names(proxy: Proxy, *expected: str) -> bool:
    reply = await send(proxy.url, "/admin/backends", headers={"Authorization": f"Bearer {'k' * 32}"})
    return [one["name"] for one in reply.json["backends"]] == list(expected)


def gauges(page: str) -> str:
    """The metrics of current backends only; counters also keep those of former ones."""
    return "".join(line for line in page.splitlines() if line.startswith("inference_proxy_backend_"))


# --- the proxy starts


async def test_lc11_unresolvable_name_does_not_prevent_the_start(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await fleet.engine()
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo
    is_known = False

    async def resolver(host: str, port: int, **kinds: int) -> object:
        if host == "engine.invalid":
            if not is_known:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            host = "127.0.0.1"
        return await resolve(host, port, **kinds)

    monkeypatch.setattr(loop, "getaddrinfo", resolver)
    proxy = await fleet.proxy(engine.url.replace("127.0.0.1", "engine.invalid"), refresh_seconds=0.2)
    refused = await proxy.post()
    assert (refused.status, refused.json["error"]["code"]) == (503, "no_backend_available")
    assert int(refused.headers["retry-after"]) >= 1
    assert not await is_ready(proxy.url)
    assert (await send(proxy.url, "/livez")).status == 200

    is_known = True
    await eventually(lambda: is_ready(proxy.url), 3)
    assert (await proxy.post()).status == 200


def directory_for_a_certificate(folder: Path) -> dict[str, str]:
    return {"TLS_CERT_FILE": str(folder), "TLS_KEY_FILE": str(folder)}


def broken_fleet_file(folder: Path) -> dict[str, str]:
    (folder / "fleet.yaml").write_text("backends: [{url: http://a:1}, {url: 'not a url'}]")
    return {"BACKENDS": "", "CONFIG_FILE": "fleet.yaml"}


MISTAKES: dict[str, tuple[Callable[[Path], dict[str, str]], str]] = {
    "an address of another machine": (lambda _: {"HOST": "192.0.2.1"}, "HOST is '192.0.2.1'"),
    "a folder for a certificate": (directory_for_a_certificate, "TLS_CERT_FILE"),
    "no key file": (lambda _: {"API_KEYS_FILE": "missing.yaml"}, "missing.yaml"),
    "a fleet file with a mistake": (broken_fleet_file, "backends.1.url"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_lc12_failed_start_is_explained_in_one_line_within_two_seconds(tmp_path: Path, mistake: str) -> None:
    make, expected = MISTAKES[mistake]
    settings = {"PORT": "0", "BACKENDS": "http://127.0.0.1:1"} | make(tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    done = subprocess.run(
        [sys.executable, "-m", "inference_engine_proxy_server", "serve"],
        cwd=tmp_path,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (1, 2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stderr
    assert expected in done.stderr
    # CPU time, which does not depend on the load of the machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


# --- backends are replaced


async def test_lc16_rolling_restart_of_backends_loses_no_request(fleet: Fleet) -> None:
    engines = [await fleet.engine(Slow(0.02)) for _ in range(3)]
    proxy = await fleet.proxy(*engines, refresh_seconds=0.1, max_allowed_request_queue=1000)
    replies: list[Reply] = []
    is_over = False

    async def asks_again_and_again() -> None:
        while not is_over:
            replies.append(await proxy.post())

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(asks_again_and_again())
        for engine in engines:
            count = len(engine.served)
            await eventually(lambda engine=engine, count=count: len(engine.served) > count + 5)  # type: ignore[misc]
            await engine.go()
            engine.die()
            await proxy.becomes(engine, "down")
            await asyncio.sleep(0.1)
            await engine.listen_again()
            await proxy.becomes(engine, "up")
        is_over = True
    assert {(reply.status, reply.complete) for reply in replies} == {(200, True)}
    assert {reply.headers["x-backend"] for reply in replies} == {engine.url for engine in engines}
    assert await proxy.metric("stream_aborts_total") == 0


@pytest.mark.slow_faults
async def test_lc16_draining_and_restarting_real_engines_loses_no_stream(
    tmp_path: Path, two_servers: list[LlamaServer], tiny_model: Path
) -> None:
    admin = {"Authorization": f"Bearer {'k' * 32}"}
    settings = {"METRICS_CACHE_TTL_SECONDS": "0.5", "ADMIN_KEY": "k" * 32, "BACKEND_QUEUE_ALLOWANCE": "100"}
    ended: list[bytes] = []
    is_over = False
    urls = [server.url for server in two_servers]
    async with program(tmp_path / "proxy", *urls, **settings) as proxy, AsyncExitStack() as stack:

        async def reads_again_and_again() -> None:
            while not is_over:
                async with Call(proxy.url, CHAT, chat(40, stream=True)) as call:
                    call.send()
                    assert await call.head() == 200
                    ended.append((await call.reply()).body)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(reads_again_and_again())
            for server in two_servers:
                target = f"/admin/backends/{server.url.removeprefix('http://')}"
                drained = await send(proxy.url, f"{target}/drain?wait_seconds=30", method="POST", headers=admin)
                assert drained.json["safe_to_stop"]
                await asyncio.to_thread(server.stop)
                again = await asyncio.to_thread(LlamaServer, tiny_model, port=server.port)
                stack.callback(again.stop)
                assert (await send(proxy.url, f"{target}/undrain", method="POST", headers=admin)).status == 200
                await proxy.becomes(again, "up")
            is_over = True
    assert len(ended) > 8
    assert all(body.endswith(b"data: [DONE]\n\n") for body in ended)
