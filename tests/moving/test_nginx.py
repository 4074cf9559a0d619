"""docs/moving-from-nginx.md: NGINX and this proxy, each with its blocks of the page, before the same engines."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from moving.conftest import StartEngines, StartProxy
from moving.pages import addresses, block, blocks, page, pointed_at
from moving.programs import NGINX, ask, content, running
from moving.sessions import engines_of_sessions
from support.http_client import chat, send
from support.ports import free_port
from support.waiting import eventually

PAGE = page("moving-from-nginx")
StartNginx = Callable[[str, dict[str, str]], tuple["Nginx", str]]
(ASK,) = (one for one in blocks(PAGE, "bash") if one.startswith("curl "))
PLAIN, HASHED = blocks(PAGE, "yaml", "fleet.yaml")
_USER = "user root;\n" if os.geteuid() == 0 else ""  # otherwise its workers could not enter the folder of a test


class Nginx:
    """NGINX with an ``http`` section of the page, in a folder of its own; ``url`` answers when it is entered."""

    def __init__(self, folder: Path, http: str, port: int) -> None:
        self.folder, self._port = folder, port
        folder.mkdir()
        self.write(http)

    def write(self, http: str) -> None:
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(
            f"{_USER}daemon off;\nerror_log error.log notice;\npid nginx.pid;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}{http}}}\n"
        )

    def running(self) -> AbstractContextManager[str]:
        arguments = [
            "-p",
            str(self.folder),
            "-c",
            str(self.folder / "nginx.conf"),
            "-e",
            str(self.folder / "error.log"),
        ]
        return running(NGINX, self.folder, arguments, self._port)

    async def reload(self, http: str) -> None:
        """Apply another configuration, and wait until the workers with the old one accept no more connections."""
        log = self.folder / "error.log"
        before = log.read_text().count("gracefully shutting down")
        self.write(http)
        os.kill(int((self.folder / "nginx.pid").read_text()), signal.SIGHUP)
        await eventually(lambda: log.read_text().count("gracefully shutting down") > before)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[StartNginx]:
    """Starts NGINX with a block of the page; gives it and its base URL."""
    with ExitStack() as stack:

        def start(title: str, replaced: dict[str, str]) -> tuple[Nginx, str]:
            port = free_port()
            http = pointed_at(block(PAGE, "nginx", title), {**replaced, "127.0.0.1:8000": f"127.0.0.1:{port}"})
            program = Nginx(tmp_path / "nginx", http, port)
            return program, stack.enter_context(program.running())

        yield start


async def test_the_request_of_the_page_has_the_same_answer_through_both(
    nginx: StartNginx, start_engines: StartEngines, start_proxy: StartProxy
) -> None:
    engines = start_engines(*["qwen3-14b"] * 3)
    _, theirs = nginx("nginx.conf", addresses(engines))
    ours = start_proxy(pointed_at(PLAIN, addresses(engines)))

    assert content(await asyncio.to_thread(ask, ASK, theirs)) == content(await asyncio.to_thread(ask, ASK, ours.url))


async def test_the_backup_serves_when_the_others_are_gone(
    nginx: StartNginx, start_engines: StartEngines, start_proxy: StartProxy
) -> None:
    engines = start_engines(*["qwen3-14b"] * 3)
    _, theirs = nginx("nginx.conf", addresses(engines))
    ours = start_proxy(pointed_at(PLAIN, addresses(engines)))
    for engine in engines[:2]:
        engine.kill()

    answers = [content(await asyncio.to_thread(ask, ASK, url)) for url in (theirs, ours.url)]
    assert answers[0] == answers[1]
    reply = await send(ours.url, "/v1/chat/completions", chat(model="qwen3-14b"))
    assert reply.headers["x-backend"] == engines[2].url


async def test_a_tier_takes_only_what_the_first_one_has_no_slot_for(
    start_engines: StartEngines, start_proxy: StartProxy
) -> None:
    engines = start_engines(*["qwen3-14b"] * 3)
    ours = start_proxy(pointed_at(PLAIN, addresses(engines)))
    first = {engine.url for engine in engines[:2]}
    for _ in range(12):
        reply = await send(ours.url, "/v1/chat/completions", chat(model="qwen3-14b"))
        assert reply.headers["x-backend"] in first

    body = chat(2000, model="qwen3-14b", ignore_eos=True)
    replies = await asyncio.gather(*(send(ours.url, "/v1/chat/completions", body) for _ in range(8)))
    served = [reply.headers["x-backend"] for reply in replies]
    assert engines[2].url in served  # two slots and an allowance of one in each of the others


async def test_a_session_stays_on_one_engine_in_both(
    nginx: StartNginx, start_engines: StartEngines, start_proxy: StartProxy
) -> None:
    engines = start_engines(*["qwen3-14b"] * 2)
    _, theirs = nginx("hashed.conf", addresses(engines))
    ours = start_proxy(pointed_at(HASHED, addresses(engines)))

    for url in (theirs, ours.url):
        used = await engines_of_sessions(url, engines)
        assert all(len(of_session) == 1 for of_session in used), (url, used)
        assert set.union(*used) == {0, 1}, url


async def test_a_share_moves_and_returns_without_a_failed_request(
    nginx: StartNginx, start_engines: StartEngines, start_proxy: StartProxy
) -> None:
    engines = start_engines(*["qwen3-14b"] * 2)
    ours = start_proxy(pointed_at(HASHED, addresses(engines)), BALANCING_POLICY="least_requests")
    replaced = {**addresses(engines), "127.0.0.1:8888": ours.url.removeprefix("http://")}
    program, theirs = nginx("shared.conf", replaced)
    port = theirs.rpartition(":")[2]
    http = pointed_at(block(PAGE, "nginx", "shared.conf"), {**replaced, "127.0.0.1:8000": f"127.0.0.1:{port}"})

    stop = asyncio.Event()
    statuses: list[int] = []

    async def client() -> None:
        while not stop.is_set():
            reply = await send(theirs, "/v1/chat/completions", chat(model="qwen3-14b"), headers={"Connection": "close"})
            statuses.append(reply.status if reply.complete else 0)

    def served() -> int:
        return len(ours.access_lines)

    async with asyncio.TaskGroup() as clients:
        for _ in range(4):
            clients.create_task(client())
        await eventually(served)  # 10 %: some requests, not all
        assert served() < len(statuses)
        await program.reload(pointed_at(http, {"10%": "100%"}))
        at_reload = served()
        await eventually(lambda: served() > at_reload + 20)
        await program.reload(pointed_at(http, {"    10% proxy;\n": ""}))  # back out

        async def gets_nothing() -> bool:  # requests that NGINX sent before may still arrive
            at_first, count = served(), len(statuses)
            await eventually(lambda: len(statuses) > count + 20)
            return served() == at_first

        await eventually(gets_nothing)
        stop.set()

    assert set(statuses) == {200}
