"""Announcers outlive proxies, and proxies outlive announcers."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from end_to_end.test_announce import a_proxy, announcing, has
from end_to_end.test_joining import ANNOUNCE, SETTINGS, Streams, a_fleet, announce, begun
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.ports import free_port
from support.program import Command, program
from support.waiting import eventually


async def test_announcing_goes_on_through_a_restart_of_the_proxy(tmp_path: Path) -> None:
    port = str(free_port())
    settings = {"BACKENDS": "", "PORT": port, **SETTINGS}
    async with Engine(answers_with(http_reply())) as engine:
        url = f"http://127.0.0.1:{port}"
        with announcing(tmp_path, engine.url, url) as command:
            await eventually(lambda: "it cannot be reached" in command.events)  # the proxy starts later
            for name in ("first", "second"):
                async with program(tmp_path / name, **settings) as proxy:
                    await eventually(partial(has, proxy, engine.url))
            await eventually(lambda: "it cannot be reached" in command.events.splitlines()[-1])
            command.signal(signal.SIGTERM)
            assert await command.ended() == 1
            assert "could not be taken out of the fleet, the lease ends within 1.2 s" in command.events


async def test_an_engine_whose_announcer_is_killed_leaves_when_the_lease_ends(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply())) as engine, a_proxy() as proxy:
        with announcing(tmp_path, engine.url, proxy) as command:
            await eventually(lambda: has(proxy, engine.url))
            command.signal(signal.SIGKILL)

            async def has_left() -> bool:
                return not await has(proxy, engine.url)

            await eventually(has_left)


async def test_the_wait_for_requests_has_a_limit_and_a_second_signal_ends_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(Streams()))
        proxy = await stack.enter_async_context(a_proxy(drain_timeout_seconds=1))
        for options, signals in ((("--drain", "0.1"), 1), (("--drain", "600"), 2)):
            with announcing(tmp_path, engine.url, proxy, options=options) as command:
                await eventually(lambda: has(proxy, engine.url))
                await proxy.becomes(engine, "up")
                await begun(proxy, stack)
                for _ in range(signals):
                    command.signal(signal.SIGTERM)
                    await eventually(lambda: "leaving; a second signal stops at once" in command.events)
                assert await command.ended() == 1


async def test_the_key_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{ANNOUNCE}\n")
    async with Engine(answers_with(http_reply())) as engine, a_proxy() as proxy:
        arguments = ("--proxy", proxy.url, "--backend", engine.url, "--key-file", str(file))
        with Command(tmp_path / "c", "announce", *arguments):
            await eventually(lambda: has(proxy, engine.url))


async def test_leases_do_not_end_because_the_proxy_stood_still(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as (proxy, (_, second)):
        await announce(proxy, url=second.url, lease_seconds=1.5)
        proxy.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(4)
            # What an announcer would have sent meanwhile; the reply comes when the proxy runs again.
            renewal = asyncio.get_running_loop().create_task(announce(proxy, url=second.url, lease_seconds=600))
            await asyncio.sleep(0.1)
        finally:
            proxy.signal(signal.SIGCONT)
        assert (await renewal).status == 200
        assert "has ended" not in proxy.events
        assert "this process stood still" in proxy.events
