"""Announcers outlive proxies, and proxies outlive announcers."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from end_to_end.test_announce import a_proxy, announcing, has
from end_to_end.test_joining import SETTINGS
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.ports import free_port
from support.program import program
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
