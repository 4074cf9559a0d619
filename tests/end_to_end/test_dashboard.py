"""The dashboard of the program, with real llama.cpp servers and several workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import StartProxy
from inference_engine_proxy_server import cli
from support.dashboards import ADMIN_KEY, OPERATOR, live, next_snapshot, snapshot_of
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy, run_command
from support.waiting import eventually

PATH = "/v1/chat/completions"
LONG = 4000  # tokens; takes many seconds
SETTINGS = {"ADMIN_KEY": ADMIN_KEY, "BACKEND_QUEUE_ALLOWANCE": "0", "METRICS_CACHE_TTL_SECONDS": "0.5"}


@pytest.fixture
def server(two_slow_servers: list[LlamaServer]) -> LlamaServer:
    return two_slow_servers[0]


def processing(server: LlamaServer) -> float:
    return server.metrics()["llamacpp:requests_processing"]


@asynccontextmanager
async def stream(proxy: Proxy, request_id: str) -> AsyncIterator[Call]:
    """A long stream that has begun."""
    async with Call(proxy.url, PATH, chat(LONG, stream=True), headers={"X-Request-Id": request_id}) as call:
        call.send()
        assert await call.head() == 200
        yield call


async def cancel(proxy: Proxy, request_id: str) -> dict[str, Any]:
    reply = await send(proxy.url, f"/admin/requests/{request_id}/cancel", b"", method="POST", headers=OPERATOR)
    assert reply.status == 200, reply.body
    result: dict[str, Any] = reply.json
    return result


async def test_cancelled_stream_frees_its_slot_for_a_queued_request(
    start_proxy: StartProxy, server: LlamaServer
) -> None:
    proxy = start_proxy(server, **SETTINGS)
    async with stream(proxy, "one") as one, stream(proxy, "two"), Call(proxy.url, PATH, chat(3)) as queued:
        queued.send()
        waiting = await live(proxy, lambda request: request["phase"] == "queued")
        assert (waiting["position"], waiting["backend"]) == (1, None)
        shown = await live(proxy, lambda request: request["id"] == "one" and request["tokens"] > 3)
        assert shown["phase"] == "decode"
        assert shown["tokens_per_second"] > 0

        await cancel(proxy, "one")

        assert (await queued.reply()).status == 200
        events = []
        while event := await one.event():
            events.append(event)
        error = json.loads(events[-1].removeprefix(b"data: "))
        assert error["error"]["code"] == "request_cancelled"
        assert not one.complete
        await eventually(lambda: processing(server) == 1)


async def test_queued_request_can_be_cancelled(start_proxy: StartProxy, server: LlamaServer) -> None:
    proxy = start_proxy(server, **SETTINGS)
    async with stream(proxy, "one"), stream(proxy, "two"):
        async with Call(proxy.url, PATH, chat(3), headers={"X-Request-Id": "three"}) as queued:
            queued.send()
            await live(proxy, lambda request: request["phase"] == "queued")

            await cancel(proxy, "three")

            reply = await queued.reply()
            assert (reply.status, reply.json["error"]["code"]) == (503, "request_cancelled")
        assert (await snapshot_of(proxy))["fleet"]["queue"] == 0


async def test_resumed_stream_and_its_event_are_shown(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, **SETTINGS)
    async with stream(proxy, "mine") as call:
        await call.event()
        before = await live(proxy, lambda request: request["phase"] == "decode")
        next(server for server in two_slow_servers if server.url.endswith(before["backend"])).kill()

        after = await live(proxy, lambda request: request["phase"] == "resumed")

        assert after["backend"] != before["backend"]
        assert (after["id"], after["resumes"]) == ("mine", 1)
        content = await snapshot_of(proxy)
        assert content["fleet"]["tokens_out_per_second"] > 0
        [event] = [event for event in content["events"] if event["kind"] == "resume"]
        assert (event["backend"], event["severity"]) == (before["backend"], "warning")
        name = re.escape(before["backend"])
        pattern = (
            rf"The stream of request mine broke on backend {name} after \d+ tokens \(backend_disconnected\) and .*\."
        )
        assert re.fullmatch(pattern, event["text"])


async def test_tokens_of_finished_requests_are_rates_and_usage(start_proxy: StartProxy, server: LlamaServer) -> None:
    proxy = start_proxy(server, **SETTINGS)
    assert (await send(proxy.url, PATH, chat(8))).status == 200

    content = await snapshot_of(proxy)

    [backend] = content["backends"]
    assert (backend["engine"], backend["slots"]) == ("llamacpp", 2)
    assert backend["engine_version"].startswith("b")
    assert backend["source"] == "configuration"
    assert backend["tokens_out_per_second"] > 0
    assert backend["tokens_in_per_second"] > 0
    assert backend["ttft_p50"] > 0


async def on_each_worker(proxy: Proxy, stack: AsyncExitStack) -> dict[int, str]:
    """A stream in each of two workers: their ids by the number of the worker."""
    found: dict[int, str] = {}
    for number in range(40):
        name = f"stream-{number}"
        async with AsyncExitStack() as mine:
            await mine.enter_async_context(stream(proxy, name))
            worker = (await live(proxy, lambda request, name=name: request["id"] == name))["worker"]  # type: ignore[misc]
            if worker not in found:
                found[worker] = name
                stack.push_async_exit(mine.pop_all())
        if len(found) == 2:
            return found
    raise AssertionError("the kernel gave all connections to one worker")


async def test_workers_are_shown_and_commanded_as_one(start_proxy: StartProxy, server: LlamaServer) -> None:
    proxy = start_proxy(server, **SETTINGS, WORKERS="2")
    async with AsyncExitStack() as stack:
        streams = await on_each_worker(proxy, stack)
        for _ in range(6):  # connections reach both workers
            content = await snapshot_of(proxy)
            assert content["workers"] == {"count": 2, "silent": []}
            assert {request["id"] for request in content["requests"]["shown"]} == set(streams.values())
            assert (content["requests"]["total"], content["fleet"]["in_flight"]) == (2, 2)
            states = [event for event in content["events"] if event["kind"] == "state"]
            assert [event["text"].endswith("is up.") for event in states] == [True]

        for name in streams.values():
            assert (await cancel(proxy, name))["cancelled"] == 1

        await eventually(lambda: processing(server) == 0)


async def test_requests_of_both_workers_add_up(start_proxy: StartProxy, shared_server: LlamaServer) -> None:
    proxy = start_proxy(shared_server, **SETTINGS, WORKERS="2")
    for _ in range(10):
        assert (await send(proxy.url, PATH, chat(1))).status == 200

    rates = [(await snapshot_of(proxy))["fleet"]["requests_per_second"] for _ in range(4)]

    # Each worker began at its own moment, so their rates are sums over nearly, not exactly, the same time.
    assert min(rates) > 0.6 * max(rates) > 0


async def test_worker_that_hangs_is_named_and_delays_nobody_for_long(
    start_proxy: StartProxy, shared_server: LlamaServer
) -> None:
    proxy = start_proxy(shared_server, **SETTINGS, WORKERS="2")
    frozen: int | None = None
    async with Call(proxy.url, "/dashboard/feed", headers=OPERATOR) as feed:
        feed.send()
        assert await feed.head() == 200
        await next_snapshot(feed)
        try:
            for worker in proxy.workers:  # one of them has the viewer
                os.kill(worker, signal.SIGSTOP)
                frozen = worker
                try:
                    async with asyncio.timeout(5):
                        while not (await next_snapshot(feed))[1]["workers"]["silent"]:
                            pass
                    break
                except TimeoutError:
                    os.kill(worker, signal.SIGCONT)
                    frozen = None
            assert frozen is not None
            began = time.monotonic()
            numbers = [(await next_snapshot(feed))[0] for _ in range(3)]
            assert numbers == list(range(numbers[0], numbers[0] + 3))
            assert time.monotonic() - began < 10
        finally:
            if frozen is not None:
                os.kill(frozen, signal.SIGCONT)


async def test_operators_are_on_the_admin_port_only(start_proxy: StartProxy, shared_server: LlamaServer) -> None:
    proxy = start_proxy(shared_server, ADMIN_PORT="0", ADMIN_KEY=ADMIN_KEY)
    found = re.search(r"listening on (http://\S+) for operators", proxy.events)
    assert found is not None

    here = await send(proxy.url, "/dashboard/snapshot", headers=OPERATOR)
    there = await send(found[1], "/dashboard/snapshot", headers=OPERATOR)
    anyone = await send(found[1], "/dashboard/snapshot")

    assert [reply.json["admin_key"] for reply in (here, there, anyone)] == ["unset", "accepted", "required"]
    assert here.json["audience"] == "public"
    async with Call(found[1], "/dashboard/feed", headers=OPERATOR) as feed:
        feed.send()
        assert await feed.head() == 200
        assert (await next_snapshot(feed))[1]["audience"] == "operator"
    refused = await send(found[1], "/admin/requests/a/cancel", b"", method="POST", headers=OPERATOR)
    assert (refused.status, refused.json["error"]["code"]) == (404, "no_such_request")
    assert (await send(found[1], "/admin/settings", headers=OPERATOR)).status == 200
    assert (await send(proxy.url, "/admin/settings", headers=OPERATOR)).status == 404


async def test_source_of_a_setting_is_named(start_proxy: StartProxy, shared_server: LlamaServer) -> None:
    proxy = start_proxy(shared_server, ADMIN_KEY=ADMIN_KEY)

    rows = (await send(proxy.url, "/admin/settings", headers=OPERATOR)).json["settings"]

    sources = {row["name"]: row["source"] for row in rows}
    assert (sources["BACKENDS"], sources["QUEUE_TIMEOUT_SECONDS"]) == ("environment", "default")
    assert next(row["value"] for row in rows if row["name"] == "ADMIN_KEY") != ADMIN_KEY


async def test_proxy_with_viewers_stops_at_once(start_proxy: StartProxy, shared_server: LlamaServer) -> None:
    proxy = start_proxy(shared_server)
    async with Call(proxy.url, "/dashboard/feed") as feed:
        feed.send()
        assert await feed.head() == 200
        await next_snapshot(feed)

        await asyncio.to_thread(proxy.stop)  # has a deadline that is shorter than the usual drain

        while await feed.event():
            pass
        assert feed.complete


@pytest.mark.parametrize("workers", ["1", "2"])
def test_top_shows_a_running_proxy_once(
    start_proxy: StartProxy, shared_server: LlamaServer, tmp_path: Path, workers: str
) -> None:
    proxy = start_proxy(shared_server, ADMIN_KEY=ADMIN_KEY, WORKERS=workers)
    port = proxy.url.rpartition(":")[2]

    text = run_command(tmp_path, "top", "--once", PORT=port, ADMIN_KEY=ADMIN_KEY)
    found = run_command(tmp_path, "top", "--once", "--json", "--url", proxy.url, "--admin-key", ADMIN_KEY)
    public = run_command(tmp_path, "top", "--once", "--url", proxy.url)

    assert (text.returncode, text.stderr) == (0, "")
    assert "OK  1 of 1 backends take requests" in text.stdout
    assert shared_server.url.removeprefix("http://") in text.stdout
    assert "is up." in text.stdout
    assert json.loads(found.stdout)["audience"] == "operator"
    assert "Without ADMIN_KEY" in public.stdout


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "words"),
    [
        (["--json"], {}, 2, "--json needs --once"),
        (["--once"], {"PORT": "0"}, 2, "PORT is 0"),
        (["--once", "--url", "somewhere"], {}, 2, "--url: 'somewhere' is not a base URL"),
        (["--once", "--url", "http://127.0.0.1:1"], {}, 1, "http://127.0.0.1:1 cannot be reached: Connection refused"),
    ],
)
def test_top_says_what_is_wrong(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int, words: str
) -> None:
    done = run_command(tmp_path, "top", *arguments, **settings)

    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_top_without_its_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "inference_engine_proxy_server.top.app", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("textual", "rich")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setitem(sys.modules, "rich", None)

    assert cli.main(["top", "--url", "http://127.0.0.1:1"]) == 1

    assert "pip install 'inference-engine-proxy-server[top]'" in capsys.readouterr().err
