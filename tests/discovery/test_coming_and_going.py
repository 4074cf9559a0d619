"""Real llama.cpp servers join and leave under constant load, by admin API, announcement and file at once.

CHURN_SECONDS says for how long.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from support.coming_and_going import ADMIN, ANNOUNCE, Coming, fleet_file_of
from support.llama_server import LlamaServer
from support.ports import free_port
from support.program import program

_SECONDS = float(os.environ.get("CHURN_SECONDS", "60"))


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_no_request_fails_while_real_engines_come_and_go(tmp_path: Path, tiny_model: Path, workers: str) -> None:
    @asynccontextmanager
    async def start() -> AsyncIterator[LlamaServer]:
        options = ("--slots", "4", "--context", "8192")
        server = await asyncio.to_thread(LlamaServer, tiny_model, *options, port=free_port())
        with server:
            yield server

    async with start() as stable:
        file = tmp_path / "fleet.yaml"
        file.write_text(fleet_file_of(stable.url))
        settings = {"CONFIG_FILE": str(file), "ADMIN_KEY": ADMIN, "ANNOUNCE_KEY": ANNOUNCE, "WORKERS": workers}
        async with program(tmp_path, **settings) as proxy:
            tally = await Coming(proxy, tmp_path, file, stable, start).run(_SECONDS, clients=8)

    assert tally.failures == []
    assert set(tally.rounds) == {"by_admin_api", "by_announcement", "by_file"}
