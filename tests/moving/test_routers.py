"""docs/moving-from-vllm-router.md: its commands start the routers and this proxy, before the same engines."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from moving.conftest import StartEngines
from moving.pages import addresses, blocks, page, pointed_at
from moving.programs import SMG, VLLM_ROUTER, Peer, ask, content, running
from moving.sessions import engines_of_sessions
from support.http_client import chat, send
from support.ports import free_port
from support.program import Proxy
from support.waiting import eventually

PAGE = page("moving-from-vllm-router")
COMMANDS = [one.strip().replace("\\\n", "") for one in blocks(PAGE, "bash")]
(ASK,) = (one for one in COMMANDS if "/v1/chat/completions" in one)
PEERS = {"vllm-router": VLLM_ROUTER, "smg": SMG}
ADMIN_KEY = "an-admin-key-of-a-test"


def command(*words: str) -> str:
    """The only command of the page with these words."""
    (only,) = (one for one in COMMANDS if all(word in one for word in words))
    return only


class Started:
    """Starts the commands of the page."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder

    def router(self, line: str, replaced: Mapping[str, str]) -> str:
        program, *arguments = shlex.split(pointed_at(line, replaced))
        port, metrics = free_port(), free_port()
        arguments = [str(port) if argument == "30000" else argument for argument in arguments]
        peer: Peer = PEERS[program]
        folder = self._folder / f"{program}-{port}"
        arguments += ["--prometheus-port", str(metrics)]
        return self._stack.enter_context(running(peer, folder, arguments, port))

    def ours(self, line: str, replaced: Mapping[str, str]) -> Proxy:
        words = shlex.split(pointed_at(line, replaced))
        settings = dict(word.split("=", 1) for word in words[: words.index("inference-proxy")])
        backends = words[words.index("--backends") + 1].split(",")
        folder = self._folder / "ours"
        return self._stack.enter_context(Proxy(folder, backends, ADMIN_KEY=ADMIN_KEY, **settings))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    with ExitStack() as stack:
        yield Started(stack, tmp_path)


def test_the_request_of_the_page_has_the_same_answer_through_all(started: Started, start_engines: StartEngines) -> None:
    engines = addresses(start_engines("qwen3-14b", "qwen3-14b"), 8000)
    urls = [
        started.router(command("vllm-router", "power_of_two"), engines),
        started.router(command("smg launch", "power_of_two"), engines),
        started.ours(command("inference-proxy", "power_of_two"), engines).url,
    ]
    assert len({content(ask(ASK, url)) for url in urls}) == 1


async def test_a_session_stays_on_one_engine_in_both(started: Started, start_engines: StartEngines) -> None:
    engines = start_engines("qwen3-14b", "qwen3-14b")
    theirs = await asyncio.to_thread(started.router, command("consistent_hash"), addresses(engines, 8000))
    ours = await asyncio.to_thread(started.ours, command("rendezvous"), addresses(engines, 8000))

    for url in (theirs, ours.url):
        used = await engines_of_sessions(url, engines)
        assert all(len(of_session) == 1 for of_session in used), (url, used)
        assert set.union(*used) == {0, 1}, url


async def test_a_worker_joins_while_both_run(started: Started, start_engines: StartEngines) -> None:
    engines = start_engines("qwen3-14b", "qwen3-14b", "qwen3-14b")
    two, third = addresses(engines[:2], 8000), {"llm-3:8000": f"127.0.0.1:{engines[2].port}"}
    theirs = await asyncio.to_thread(started.router, command("vllm-router", "power_of_two"), two)
    ours = await asyncio.to_thread(started.ours, command("inference-proxy", "power_of_two"), two)

    await _run(command("add_worker"), {**third, "127.0.0.1:30000": theirs.removeprefix("http://")})
    await _run(
        command("/admin/backends"),
        {**third, "127.0.0.1:8888": ours.url.removeprefix("http://"), "$ADMIN_KEY": ADMIN_KEY},
    )
    for url in (theirs, ours.url):
        before = engines[2].metrics()["llamacpp:prompt_tokens_total"]

        async def serves(url: str = url, before: float = before) -> bool:
            body = chat(model="qwen3-14b", cache_prompt=False)
            assert (await send(url, "/v1/chat/completions", body)).status == 200
            return engines[2].metrics()["llamacpp:prompt_tokens_total"] > before

        await eventually(serves)


async def _run(line: str, replaced: Mapping[str, str]) -> None:
    script = f"{pointed_at(line, replaced)} --silent --show-error --fail-with-body --max-time 120"
    process = await asyncio.create_subprocess_exec("bash", "-c", script)
    assert await process.wait() == 0
