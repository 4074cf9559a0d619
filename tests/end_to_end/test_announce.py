"""`inference-proxy announce` keeps an engine in the fleets of proxies, and takes it out before it stops."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from end_to_end.test_joining import ADMIN, ANNOUNCE, Streams, begun, sources
from inference_engine_proxy_server import cli
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.http_client import Call
from support.live_proxy import Proxy, live_proxy
from support.ports import free_port
from support.program import Command, run_command
from support.running_proxy import RunningProxy
from support.waiting import eventually

KEY = {"ANNOUNCE_KEY": ANNOUNCE}


def a_proxy(**settings: Any) -> AbstractAsyncContextManager[Proxy]:
    """A proxy without backends."""
    return live_proxy(refresh_seconds=0.5, admin_key=ADMIN, announce_key=ANNOUNCE, **settings)


def announcing(folder: Path, engine: str, *proxies: Proxy | str, options: tuple[str, ...] = ()) -> Command:
    urls = [proxy if isinstance(proxy, str) else proxy.url for proxy in proxies]
    named = [argument for url in urls for argument in ("--proxy", url)]
    return Command(folder / "announce", "announce", *named, "--backend", engine, "--interval", "0.4", *options, **KEY)


async def has(proxy: RunningProxy, url: str) -> bool:
    return url in await sources(proxy)


async def says(command: Command, text: str) -> bool:
    return text in command.events


async def test_an_engine_joins_two_proxies_and_leaves_them_on_sigterm(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(answers_with(http_reply())))
        one, other = [await stack.enter_async_context(a_proxy()) for _ in range(2)]
        options = ("--name", "gpu-1", "--tier", "2", "--weight", "3", "--models", "m, n")
        command = stack.enter_context(announcing(tmp_path, engine.url, one, other, options=options))
        for proxy in (one, other):
            await eventually(partial(has, proxy, engine.url))
            await proxy.becomes(engine, "up")
            assert (await proxy.post()).status == 200
            await eventually(partial(says, command, f"{proxy.url}: {engine.url} is in the fleet as gpu-1"))

        command.signal(signal.SIGTERM)
        assert await command.ended() == 0
        for proxy in (one, other):
            assert not await has(proxy, engine.url)
            assert command.events.count(f"{proxy.url}: ") == 2  # one line for each change
        assert "has left the fleet, and has no request" in command.events


async def test_an_engine_finishes_its_streams_before_the_command_ends(tmp_path: Path) -> None:
    streams = Streams()
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(streams))
        proxy = await stack.enter_async_context(a_proxy())
        command = stack.enter_context(announcing(tmp_path, engine.url, proxy))
        await eventually(lambda: has(proxy, engine.url))
        await proxy.becomes(engine, "up")
        call: Call = await begun(proxy, stack)

        command.signal(signal.SIGINT)
        await eventually(lambda: "it finishes its requests" in command.events)
        assert not await has(proxy, engine.url)
        streams.may_end.set()
        assert await command.ended() == 0
        assert (await call.reply()).complete


@pytest.mark.parametrize(
    ("options", "key", "problem"),
    [
        ((), "some-other-key-of-engines", "it answered 401: The key is not ANNOUNCE_KEY."),
        (("--engine", "vlm"), ANNOUNCE, "did you mean vllm?"),
    ],
)
async def test_a_proxy_that_refuses_ends_the_command(
    tmp_path: Path, options: tuple[str, ...], key: str, problem: str
) -> None:
    async with a_proxy() as proxy:
        arguments = ("announce", "--proxy", proxy.url, "--backend", "http://127.0.0.1:9", *options)
        ended = await asyncio.to_thread(run_command, tmp_path, *arguments, ANNOUNCE_KEY=key)
        assert (ended.returncode, problem in ended.stderr) == (2, True), ended.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--backend", "llm-1"), "url: 'llm-1' must begin with http:// or https://"),
        (("--backend", "http://a", "--tier", "0"), "tier: must be a whole number from 1 to 100"),
        (("--backend", "http://a"), "--proxy is missing"),
        (("--backend", "http://a", "--proxy", "p"), "'p' is not a base URL like http://proxy:8888"),
        (("--backend", "http://a", "--proxy", "http://p", "--interval", "0"), "--interval must be from 0.2"),
        (("--backend", "http://a", "--proxy", "http://p", "--drain", "-1"), "--drain must be from 0"),
        (("--backend", "http://a", "--proxy", "http://p", "--key-file", "none"), "--key-file none: No such file"),
        (("--backend", "http://a", "--backend-key-env", "NONE"), "the environment variable NONE is not set"),
        (("--mdns", "--backend", "http://127.0.0.1:9"), "other machines cannot reach 127.0.0.1"),
        (("--mdns", "eth0", "--backend", "http://10.0.0.1:9"), "'eth0' is not the IPv4 address of an interface"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANNOUNCE_KEY", ANNOUNCE)
    assert cli.main(["announce", *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_a_missing_key_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ANNOUNCE_KEY", raising=False)
    assert cli.main(["announce", "--backend", "http://a", "--proxy", "http://p"]) == 2
    assert "ANNOUNCE_KEY is not set" in capsys.readouterr().err


ENGINE = """
import http.server, json, pathlib, signal, sys
class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "m", "owned_by": "llamacpp"}]}).encode()
        self.send_response(200 if self.path in ("/v1/models", "/health") else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
def stop(*_):
    pathlib.Path(sys.argv[2]).write_text("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
if sys.argv[3:]:
    sys.exit(int(sys.argv[3]))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
"""


def engine_command(folder: Path, port: int, *arguments: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", ENGINE, str(port), str(folder / "stopped"), *arguments)


async def test_an_engine_that_was_started_stops_after_it_has_left(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with a_proxy() as proxy:
        with announcing(tmp_path, url, proxy, options=engine_command(tmp_path, port)) as command:
            await eventually(lambda: has(proxy, url))

            async def is_up() -> bool:
                return bool((await proxy.details())[url]["state"] == "up")

            await eventually(is_up)
            command.signal(signal.SIGTERM)
            assert await command.ended() == 0
            assert (tmp_path / "stopped").read_text() == "stopped"
            assert not await has(proxy, url)


async def test_an_engine_that_ends_by_itself_leaves_and_determines_the_exit_code(tmp_path: Path) -> None:
    port = free_port()
    async with a_proxy() as proxy:
        command = announcing(tmp_path, f"http://127.0.0.1:{port}", proxy, options=engine_command(tmp_path, port, "7"))
        with command:
            assert await command.ended() == 7
            assert "the engine has ended with exit code 7" in command.events
            assert not await sources(proxy)


def test_a_command_that_cannot_be_started_is_explained(tmp_path: Path) -> None:
    arguments = ("--backend", "http://127.0.0.1:9", "--proxy", "http://127.0.0.1:9", "--", "no-such-engine")
    ended = run_command(tmp_path, "announce", *arguments, **KEY)
    assert (ended.returncode, "no-such-engine cannot be started" in ended.stderr) == (2, True)
