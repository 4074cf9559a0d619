"""Backends join and leave while the proxy runs: by the admin API, and by announcements with a lease."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.composition.joining import build_roster
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.fleet.fleet_updater import UnknownEngineError
from support.engine import EVENT, STREAM_HEAD, Engine, answers_with, chunk, hangs
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import Call, Reply, send
from support.live_proxy import live_proxy
from support.program import Proxy, program, run_command
from support.running_proxy import Addressed, RunningProxy
from support.waiting import eventually

ADMIN, ANNOUNCE = "key-of-the-operators", "key-of-the-engines"
SETTINGS = {"ADMIN_KEY": ADMIN, "ANNOUNCE_KEY": ANNOUNCE}


async def ask(
    proxy: RunningProxy, path: str, body: object = None, *, method: str = "", key: str = ADMIN, target: str = "/admin"
) -> Reply:
    return await send(proxy.url, target + path, body, method=method, headers={"Authorization": f"Bearer {key}"})


async def add(proxy: RunningProxy, **entry: Any) -> Reply:
    return await ask(proxy, "/backends", entry)


async def announce(proxy: RunningProxy, **entry: Any) -> Reply:
    return await ask(proxy, "/announced", entry, method="PUT", key=ANNOUNCE)


async def withdraw(proxy: RunningProxy, engine: Addressed, query: str = "") -> Reply:
    return await ask(proxy, f"/announced?url={engine.url}{query}", method="DELETE", key=ANNOUNCE)


async def remove(proxy: RunningProxy, name: str, query: str = "") -> Reply:
    return await ask(proxy, f"/backends/{name}{query}", method="DELETE")


async def sources(proxy: RunningProxy) -> dict[str, str]:
    return {row["url"]: row["source"] for row in (await ask(proxy, "/backends")).json["backends"]}


def message(reply: Reply) -> str:
    return str(reply.json["error"]["message"])


@asynccontextmanager
async def a_fleet(folder: Path, count: int = 2, **settings: str) -> AsyncIterator[tuple[Proxy, list[Engine]]]:
    """A proxy process with the first of ``count`` engines, which answer at once."""
    async with some_engines(count) as engines, program(folder, engines[0], **SETTINGS | settings) as proxy:
        yield proxy, engines


@asynccontextmanager
async def a_live_fleet(count: int = 2, **settings: str) -> AsyncIterator[tuple[RunningProxy, list[Engine]]]:
    """The same in this process."""
    keys = {"admin_key": ADMIN, "announce_key": ANNOUNCE} | settings
    async with some_engines(count) as engines, live_proxy(engines[0].url, refresh_seconds=0.5, **keys) as proxy:
        yield proxy, engines


@asynccontextmanager
async def some_engines(count: int) -> AsyncIterator[list[Engine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Engine(answers_with(http_reply()))) for _ in range(count)]


def some_fleet(
    folder: Path, workers: str, count: int = 2
) -> AbstractAsyncContextManager[tuple[RunningProxy, list[Engine]]]:
    """One process in this process, or several workers."""
    return a_live_fleet(count) if workers == "1" else a_fleet(folder, count, WORKERS=workers)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_added_backend_gets_requests_and_a_removed_one_gets_none(tmp_path: Path, workers: str) -> None:
    async with some_fleet(tmp_path, workers) as (proxy, (first, second)):
        added = await add(proxy, url=second.url, name="llm-3", weight=2, tier=1)
        assert (added.status, added.json["name"], added.json["source"]) == (201, "llm-3", "admin API")
        assert added.json["saved"] is False
        await proxy.becomes(second, "up")

        await asyncio.gather(*(proxy.post() for _ in range(20)))
        assert second.served
        assert await sources(proxy) == {first.url: "configuration", second.url: "admin API"}

        removed = (await remove(proxy, "llm-3")).json
        assert (removed["in_fleet"], removed["safe_to_stop"]) == (False, True)
        before = len(second.served)
        assert {(await proxy.post()).status for _ in range(10)} == {200}
        assert len(second.served) == before
        assert second.url not in await sources(proxy)


async def test_adding_a_backend_again_changes_it() -> None:
    async with a_live_fleet() as (proxy, (_, second)):
        assert (await add(proxy, url=second.url)).status == 201
        changed = await add(proxy, url=second.url, weight=3)
        assert (changed.status, changed.json["weight"]) == (200, 3)


WRONG: list[tuple[object, str]] = [
    ({}, "url is missing."),
    ({"url": "llm-3:8080"}, "url: 'llm-3:8080' must begin with http:// or https://."),
    ({"url": "http://a", "wieght": 2}, "wieght is unknown; did you mean weight?"),
    ({"url": "http://a", "tier": 0}, "tier: must be a whole number from 1 to 100."),
    ({"url": "http://a", "engine": "vlm"}, "did you mean vllm?"),
    ({"url": "http://a", "api_key": "two words"}, "api_key: must be printable ASCII without blanks."),
    ({"url": "http://a", "api_key_env": "NOT_SET"}, "the environment variable that it names is not set."),
    ({"url": "http://a", "external": True}, "external: true requires 'models'"),
    ([], "The body must be a JSON object such as"),
    (b"{", "The body must be a JSON object such as"),
]


async def test_a_wrong_description_is_explained() -> None:
    async with a_live_fleet(1) as (proxy, _):
        for entry, problem in WRONG:
            reply = await ask(proxy, "/backends", entry)
            assert (reply.status, problem in message(reply)) == (400, True), message(reply)
        assert len(await sources(proxy)) == 1


async def test_a_configured_backend_is_neither_added_nor_removed() -> None:
    async with a_live_fleet(1) as (proxy, (first,)):
        for reply in (await add(proxy, url=first.url), await remove(proxy, first.url)):
            assert (reply.status, reply.json["error"]["code"]) == (409, "backend_is_configured")
            assert "change it in the fleet file or in BACKENDS" in message(reply)
        assert (await remove(proxy, "llm-9")).status == 404


async def test_a_name_belongs_to_one_backend() -> None:
    async with a_live_fleet(3) as (proxy, (_, second, third)):
        assert (await add(proxy, url=second.url, name="llm-2")).status == 201
        added = await add(proxy, url=third.url, name="llm-2")
        announced = await announce(proxy, url=third.url, name="llm-2")
        assert added.status == announced.status == 409
        assert message(added) == f"name: 'llm-2' is the name of {second.url}: choose another one."
        assert message(announced) == "name: 'llm-2' is the name of another backend: choose another one."


async def test_each_key_opens_only_its_own_paths() -> None:
    async with a_live_fleet(2) as (proxy, (_, second)):
        entry = {"url": second.url}
        assert (await ask(proxy, "/backends", entry, key=ANNOUNCE)).status == 401
        assert (await ask(proxy, "/backends", key=ANNOUNCE)).status == 401
        assert (await ask(proxy, "/announced", entry, method="PUT", key="some-other-key")).status == 401
        assert (await ask(proxy, "/announced", entry, method="PUT", key=ADMIN)).status == 200
        assert (await announce(proxy, **entry)).status == 200
        assert (await remove(proxy, second.url)).status == 200


async def test_without_a_key_for_announcements_they_are_off() -> None:
    async with Engine() as engine, live_proxy(engine.url, admin_key=ADMIN) as proxy:
        reply = await ask(proxy, "/announced", {"url": "http://a"}, method="PUT")
        assert (reply.status, reply.json["error"]["code"]) == (404, "announcements_off")
        assert "ANNOUNCE_KEY is not set" in message(reply)


async def test_an_announcement_cannot_name_a_variable_of_the_proxy() -> None:
    async with a_live_fleet(1) as (proxy, _):
        reply = await announce(proxy, url="http://127.0.0.1:9", api_key_env="ADMIN_KEY")
        assert (reply.status, message(reply)[:34]) == (400, "api_key_env cannot be announced, b")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_announced_backend_stays_while_its_lease_is_renewed(tmp_path: Path, workers: str) -> None:
    async with some_fleet(tmp_path, workers) as (proxy, (_, second)):
        announced = (await announce(proxy, url=second.url, name="gpu-2", lease_seconds=2)).json
        assert (announced["name"], announced["source"], announced["lease_seconds"]) == ("gpu-2", "announcements", 2)
        await proxy.becomes(second, "up")
        for _ in range(6):
            await asyncio.sleep(0.5)  # longer in all than the lease
            assert (await announce(proxy, url=second.url, name="gpu-2", lease_seconds=2)).status == 200
        assert (await sources(proxy))[second.url] == "announcements"

        async def has_left() -> bool:
            return all([second.url not in await sources(proxy) for _ in range(8)])

        await eventually(has_left)


async def test_an_announced_backend_of_the_configuration_stays_configured() -> None:
    async with a_live_fleet(1) as (proxy, (first,)):
        announced = await announce(proxy, url=first.url, weight=5)
        assert (announced.status, announced.json["source"]) == (200, "configuration")
        row = (await ask(proxy, "/backends")).json["backends"][0]
        assert (row["weight"], row["source"]) == (1, "configuration")
        left = (await withdraw(proxy, first)).json
        assert (left["in_fleet"], left["source"], left["safe_to_stop"]) == (True, "configuration", False)


async def test_a_backend_stays_while_another_announcer_has_a_lease() -> None:
    async with a_live_fleet() as (proxy, (_, second)):
        for name in ("old", "new"):
            await announce(proxy, url=second.url, announcer=name)
        assert (await withdraw(proxy, second, "&announcer=old")).json["in_fleet"]
        assert not (await withdraw(proxy, second, "&announcer=new")).json["in_fleet"]
        assert (await withdraw(proxy, second, "&announcer=new")).status == 200  # has no further effect


class Streams:
    """An answer that begins a stream and lasts until the test ends it."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def __call__(self, connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(EVENT))
        await self.may_end.wait()
        connection.send(chunk(EVENT), b"0\r\n\r\n")


async def begun(proxy: RunningProxy, stack: AsyncExitStack) -> Call:
    call = await stack.enter_async_context(proxy.call())
    call.send()
    assert await call.head() == 200
    return call


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_leaving_backend_finishes_its_streams(tmp_path: Path, workers: str) -> None:
    streams = Streams()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Engine(answers_with(http_reply())))
        second = await stack.enter_async_context(Engine(streams))
        if workers == "1":
            keys = {"admin_key": ADMIN, "announce_key": ANNOUNCE}
            proxy: RunningProxy = await stack.enter_async_context(live_proxy(first.url, refresh_seconds=0.5, **keys))
        else:
            proxy = await stack.enter_async_context(program(tmp_path, first, WORKERS=workers, **SETTINGS))
        assert (await announce(proxy, url=second.url, tier=1)).status == 200
        await proxy.becomes(second, "up")
        call = None
        while not second.served:
            call = await begun(proxy, stack)
        assert call is not None

        left = (await withdraw(proxy, second, "&wait_seconds=0.2")).json
        assert (left["in_fleet"], left["requests_in_flight"], left["safe_to_stop"]) == (False, 1, False)
        leaving = (await ask(proxy, "/backends")).json["leaving"]
        assert [(one["url"], one["requests_in_flight"]) for one in leaving] == [(second.url, 1)]

        streams.may_end.set()
        assert (await call.reply()).complete
        left = (await withdraw(proxy, second, "&wait_seconds=10")).json
        assert (left["requests_in_flight"], left["safe_to_stop"]) == (0, True)
        assert (await ask(proxy, "/backends")).json["leaving"] == []


async def test_added_backends_survive_a_restart_and_announced_ones_do_not(tmp_path: Path) -> None:
    file = tmp_path / "added.json"
    settings = {"DYNAMIC_BACKENDS_FILE": str(file), "WORKERS": "2"}
    async with a_fleet(tmp_path, 3, **settings) as (proxy, (first, second, third)):
        assert (await add(proxy, url=second.url, name="llm-2", api_key="a-secret")).json["saved"]
        await announce(proxy, url=third.url)
        assert [entry["name"] for entry in json.loads(file.read_text())["backends"]] == ["llm-2"]
        assert file.stat().st_mode & 0o777 == 0o600
        await asyncio.to_thread(proxy.stop)

        async with program(tmp_path / "again", first, **SETTINGS, **settings) as again:
            assert await sources(again) == {first.url: "configuration", second.url: "admin API"}
            assert (await remove(again, "llm-2")).json["saved"]
            assert json.loads(file.read_text()) == {"backends": []}


async def test_a_proxy_without_configured_backends_starts_and_gets_them_by_announcement(tmp_path: Path) -> None:
    async with (
        Engine(answers_with(http_reply())) as engine,
        program(tmp_path, BACKENDS="", ANNOUNCE_KEY=ANNOUNCE) as proxy,
    ):
        assert (await proxy.post()).status == 503
        assert (await announce(proxy, url=engine.url)).status == 200
        await proxy.becomes(engine, "up")
        assert (await proxy.post()).status == 200


DAMAGED: list[tuple[str, str]] = [
    ("{", "is not YAML"),
    ("", "must be a mapping that begins with 'backends:'"),
    ('{"backends": [{"url": "llm-1"}]}', "backends.0.url: 'llm-1' must begin with http"),
    ('{"backends": [{"url": "http://a", "engine": "vlm"}]}', "did you mean vllm?"),
]


@pytest.mark.parametrize(("text", "problem"), DAMAGED)
def test_a_damaged_file_of_added_backends_stops_the_start(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "added.json"
    file.write_text(text)
    with pytest.raises((SettingsError, UnknownEngineError), match=re.escape(problem)):
        build_roster(Settings(dynamic_backends_file=str(file)), discover_engines())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_program_says_so(tmp_path: Path, workers: str) -> None:
    (tmp_path / "added.json").write_text("{")
    ended = run_command(tmp_path, "serve", PORT="0", DYNAMIC_BACKENDS_FILE="added.json", WORKERS=workers)
    assert (ended.returncode, "added.json is not YAML" in ended.stderr) == (2, True)


def test_a_missing_folder_of_the_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="its directory does not exist"):
        build_roster(Settings(dynamic_backends_file=str(tmp_path / "none" / "added.json")), discover_engines())


async def test_a_change_that_cannot_be_saved_is_in_force_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    async with a_fleet(tmp_path, DYNAMIC_BACKENDS_FILE=str(folder / "added.json")) as (proxy, (_, second)):
        folder.rmdir()
        added = (await add(proxy, url=second.url)).json
        assert (added["saved"], added["save_problem"]) == (False, "No such file or directory")
        assert (await sources(proxy))[second.url] == "admin API"
        assert "the backends that operators have added cannot be saved" in proxy.events


async def test_a_restarted_worker_has_the_backends_and_keeps_drained_ones_drained(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, 3, WORKERS="2") as (proxy, (_, second, third)):
        await add(proxy, url=second.url, name="added")
        await announce(proxy, url=third.url, name="announced", lease_seconds=600)
        assert (await ask(proxy, "/backends/added/drain?wait_seconds=5", b"")).json["safe_to_stop"]
        killed = proxy.workers[0]
        os.kill(killed, signal.SIGKILL)

        async def is_back() -> bool:
            return killed not in proxy.workers and len(proxy.workers) == 2

        await eventually(is_back)

        async def agree() -> bool:
            rows = [(await ask(proxy, "/backends")).json for _ in range(8)]
            drained = [[row["draining"] for row in one["backends"]] for one in rows]
            return not any(one["silent_workers"] for one in rows) and drained == [[False, True, False]] * 8

        await eventually(agree)


async def test_a_removed_backend_that_is_added_again_is_not_drained(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, WORKERS="2") as (proxy, (_, second)):
        await add(proxy, url=second.url, name="added")
        await ask(proxy, "/backends/added/drain", b"")
        assert (await remove(proxy, "added", "?move=1")).json["safe_to_stop"]
        assert (await add(proxy, url=second.url, name="added")).json["draining"] is False


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_removed_backend_hands_its_requests_over(tmp_path: Path, workers: str) -> None:
    async with some_fleet(tmp_path, workers, 1) as (proxy, (first,)), Engine(hangs) as second:
        assert (await add(proxy, url=second.url)).status == 201
        await proxy.becomes(second, "up")
        asked = []
        while not second.served:
            asked.append(asyncio.get_running_loop().create_task(proxy.post()))
            await asyncio.sleep(0.05)
        removed = (await remove(proxy, second.url, "?move=1&wait_seconds=20")).json
        assert (removed["in_fleet"], removed["requests_in_flight"], removed["safe_to_stop"]) == (False, 0, True)
        replies = await asyncio.gather(*asked)
        assert {(reply.status, reply.headers["x-backend"]) for reply in replies} == {(200, first.url)}
