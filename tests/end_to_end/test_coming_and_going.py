"""Engines join and leave under load, by admin API, announcement and file at once: no request fails.

The suite `discovery` does the same for longer, with real llama.cpp servers.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from support.coming_and_going import ADMIN, ANNOUNCE, Coming, fleet_file_of
from support.engine import EVENT, STREAM_HEAD, Engine, chunk
from support.fakes.engine import EngineConnection
from support.program import program


async def answer(connection: EngineConnection) -> None:
    """A stream of a fifth of a second."""
    connection.send(STREAM_HEAD)
    for _ in range(4):
        await asyncio.sleep(0.05)
        connection.send(chunk(EVENT))
    connection.send(b"0\r\n\r\n")


def start() -> AbstractAsyncContextManager[Engine]:
    return Engine(answer)


async def test_no_request_fails_while_engines_come_and_go(tmp_path: Path) -> None:
    async with start() as stable:
        file = tmp_path / "fleet.yaml"
        file.write_text(fleet_file_of(stable.url))
        settings = {"CONFIG_FILE": str(file), "ADMIN_KEY": ADMIN, "ANNOUNCE_KEY": ANNOUNCE, "WORKERS": "2"}
        async with program(tmp_path, **settings) as proxy:
            tally = await Coming(proxy, tmp_path, file, stable, start).run(0.5, clients=6)

    assert tally.failures == []
    assert set(tally.rounds) == {"by_admin_api", "by_announcement", "by_file"}
