"""Servers of shared state, and an engine for replicas that share one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared_state.replicas import TOKENS, Answers
from support.engine import Engine
from support.redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(Answers(TOKENS), owner="vllm") as engine:
        yield engine
