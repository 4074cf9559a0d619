"""The page with a real proxy in front of real llama.cpp servers, with default settings and a shadow policy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from support.http_client import Call, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually
from ui.console import Console, opened
from ui.feed_server import ADMIN_KEY
from ui.scripted_fleet import ScriptedFleet

SETTINGS = {"ADMIN_KEY": ADMIN_KEY, "SHADOW_POLICY": "expected_time"}
CLIENT_KEY = "sk-0123456789abcdef"
LONG = {"model": "m", "stream": True, "max_tokens": 4000, "messages": [{"role": "user", "content": "Count."}]}
NUMBERS_SECONDS = 2
STATE_SECONDS = 3


@pytest.fixture
def servers(slow_model: Path) -> Iterator[list[LlamaServer]]:
    options = ("--alias", "m", "--slots", "2", "--context", "8192", "--http-threads", "16")
    with LlamaServer(slow_model, *options) as first, LlamaServer(slow_model, *options) as second:
        yield [first, second]


@pytest.fixture
def proxy(servers: list[LlamaServer], tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(tmp_path / "proxy", [server.url for server in servers], **SETTINGS) as proxy:
        yield proxy


@pytest.fixture
async def console(proxy: Proxy, tmp_path: Path) -> AsyncIterator[Console]:
    async with opened(f"{proxy.url}/", tmp_path) as console:
        await console.becomes("document.querySelectorAll('.fleet button.name').length === 2")
        await console.sign_in(ADMIN_KEY)
        yield console
        assert await console.errors() == []


@asynccontextmanager
async def streaming(proxy: Proxy) -> AsyncIterator[Call]:
    """A request whose answer has begun, until the end of the context."""
    async with Call(proxy.url, "/v1/chat/completions", LONG) as call:
        call.send()
        await call.head()
        await call.event()
        yield call


def name_of(server: LlamaServer) -> str:
    return server.url.removeprefix("http://")


async def shown_after(console: Console, condition: str) -> float:
    """The seconds until a condition holds in the page."""
    began = time.monotonic()
    await console.becomes(condition)
    return time.monotonic() - began


async def test_numbers_change_within_two_seconds(proxy: Proxy, console: Console) -> None:
    in_flight = "document.querySelector('.total-inFlight dd').innerText"
    assert await console.value(in_flight) == "0/4"
    async with streaming(proxy):
        seconds = await shown_after(console, f"{in_flight} === '1/4'")
    print(f"a request was shown after {seconds:.2f} s")  # noqa: T201
    assert seconds < NUMBERS_SECONDS


async def test_killed_server_is_shown_as_down_with_its_reason(
    proxy: Proxy, servers: list[LlamaServer], console: Console
) -> None:
    """It has a request, whose connection breaks. An idle one is found at its next poll, after up to three seconds."""
    async with streaming(proxy) as call:
        (victim,) = [server for server in servers if call.headers["x-backend"] == server.url]
        victim.kill()
        row = f"document.querySelector('tbody[data-name=\"{name_of(victim)}\"]')"
        reason = r"/It (broke a connection|cannot be reached, because nothing listens there)/"
        seconds = await shown_after(console, f"{reason}.test({row}.innerText)")
        print(f"a killed server was shown after {seconds:.2f} s")  # noqa: T201
        assert seconds < STATE_SECONDS
        assert await console.value(f"{row}.querySelector('.state').innerText") == "Down"
    assert (await console.text(".fleet tbody")).split()[0] == "Down"  # it is the first row
    await console.shows("1 of 2 backends does not work", "#summary")
    await console.shows(f"Backend {name_of(victim)} is down", ".events")


async def test_drained_backend_gets_no_requests(proxy: Proxy, servers: list[LlamaServer], console: Console) -> None:
    await console.value(f"document.querySelector('tbody[data-name=\"{name_of(servers[0])}\"] button.name').click()")
    await console.becomes("document.querySelector('dialog.panel') !== null")
    await console.click("Drain…")
    await console.click("Drain")
    await console.shows("Draining", ".panel .state")
    backends = {
        (await proxy.post(body={**LONG, "max_tokens": 2, "stream": False})).headers["x-backend"] for _ in range(4)
    }
    assert backends == {servers[1].url}
    await console.click("Undrain…")
    await console.click("Undrain")
    await console.shows("Ready", ".panel .state")


async def test_moved_stream_continues_elsewhere(proxy: Proxy, console: Console) -> None:
    async with streaming(proxy) as call:
        first = call.headers["x-backend"].removeprefix("http://")
        await console.value(f"document.querySelector('tbody[data-name=\"{first}\"] button.name').click()")
        await console.becomes("document.querySelector('dialog.panel') !== null")
        await console.click("Drain and move requests…")
        await console.click("Drain and move")
        await console.press("Escape")
        await console.value("location.hash = 'requests'")
        await console.shows("Resumed", ".requests")
        assert first not in await console.text(".requests tbody")


async def test_cancelled_request_frees_its_slot(proxy: Proxy, servers: list[LlamaServer], console: Console) -> None:
    async with streaming(proxy) as call:
        await console.value("location.hash = 'requests'")
        request_id = call.headers["x-request-id"]
        await console.shows(request_id, ".requests")
        await console.click(f"Cancel request {request_id}?")
        await console.click("Cancel the request")
        await console.shows("No request is running now.")
        rest = (await call.reply()).body
    assert b"request_cancelled" in rest

    def is_idle() -> bool:
        return sum(server.metrics()["llamacpp:requests_processing"] for server in servers) == 0

    await eventually(lambda: asyncio.to_thread(is_idle))


async def test_playground_streams_and_stop_frees_the_slot(
    proxy: Proxy, servers: list[LlamaServer], console: Console
) -> None:
    await console.value("location.hash = 'playground'")
    await console.becomes("document.querySelector('#chat-model')?.value === 'm'")
    await console.enter("textarea", "Hello")
    lengths: set[int] = set()

    async def grows() -> bool:
        lengths.add(await console.value("document.querySelector('.chat-log .assistant .words')?.innerText.length ?? 0"))
        return len(lengths) > 3

    await eventually(grows)
    await console.click("Stop")
    await console.shows("Stopped.", ".chat-log")

    async def is_idle() -> bool:
        return await proxy.in_flight() == 0

    await eventually(is_idle)


async def test_client_key_is_asked_for_and_shows_addresses(servers: list[LlamaServer], tmp_path: Path) -> None:
    settings = {"API_KEYS": f"web:{CLIENT_KEY}", "HEALTH_DETAILS": "key"}
    with Proxy(tmp_path / "proxy", [server.url for server in servers], **settings) as proxy:
        async with opened(f"{proxy.url}/", tmp_path) as console:
            await console.shows("backend-1", ".fleet")
            assert name_of(servers[0]) not in await console.text("body")
            await console.value("location.hash = 'playground'")
            await console.becomes("document.querySelector('#chat-limit') !== null")
            await console.value("document.querySelector('#chat-limit').value = 5")
            await console.enter("textarea", "Hello")
            await console.shows("An API key is required", ".chat-log")
            console.events.clear()  # the browser itself logs the 401
            await console.click("API key…")
            await console.enter("dialog input", CLIENT_KEY)
            await console.becomes("document.querySelector('dialog') === null")
            await console.enter("textarea", "Hello")
            await console.shows("5 tokens", ".chat-log")
            await console.value("location.hash = 'fleet'")
            await console.shows(name_of(servers[0]), ".fleet")
            assert await console.errors() == []


async def test_burst_reaches_both_backends_and_is_explained(
    proxy: Proxy, servers: list[LlamaServer], console: Console
) -> None:
    await console.value("location.hash = 'playground'")
    await console.becomes("document.querySelector('#chat-model')?.value === 'm'")
    await console.value(
        "document.querySelector('#burst-number').value = 8; document.querySelector('#burst-limit').value = 8"
    )
    await console.click("Start")
    await console.shows("8 of 8 answered, 0 failed", ".burst-result")
    shares = await console.texts(".spread li")
    assert {share.split("\n")[0] for share in shares} == {server.url for server in servers}
    await console.value("location.hash = 'decisions'")
    await console.becomes("document.querySelectorAll('.decisions details').length >= 8")
    await console.shows(name_of(servers[1]), ".decisions details[open]")
    await console.shows("The shadow policy expected_time would have chosen", ".decisions details[open]")
    assert await console.value("document.querySelectorAll('.shadow .part-own').length") >= 2  # its terms, as bars
    await console.value("location.hash = 'usage'")
    await console.shows("m", ".usage tbody")


async def test_settings_in_force_are_shown_without_secrets(console: Console) -> None:
    await console.value("location.hash = 'settings'")
    await console.shows("ADMIN_KEY", ".settings")
    assert ADMIN_KEY not in (await console.text(".settings")).replace("operators", "")


async def test_scripted_feed_has_the_fields_of_the_real_one(proxy: Proxy) -> None:
    """Otherwise the other tests of this folder would prove nothing."""
    scripted = ScriptedFleet(2, {2: "down"}, ADMIN_KEY).snapshot(1000, is_operator=True, is_first=True)
    async with streaming(proxy):
        real = (await send(proxy.url, "/dashboard/snapshot", headers={"X-Admin-Key": ADMIN_KEY})).json
    assert fields_of(scripted) == fields_of(real)


def fields_of(snapshot: dict[str, Any]) -> dict[str, set[str]]:
    """The names of fields, by the place where they stand."""
    places = {name: snapshot[name] for name in ("workers", "fleet", "requests", "queue", "history", "usage")}
    lists = {"backends": snapshot["backends"], "events": snapshot["events"], "shown": snapshot["requests"]["shown"]}
    rows = {name: rows[0] for name, rows in lists.items()}
    return {name: set(fields) for name, fields in {"": snapshot, **places, **rows}.items()}
