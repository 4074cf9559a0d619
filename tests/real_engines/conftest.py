"""The engines of a module, once they answer. Each module has a fixture ``started``, which starts its own."""

from __future__ import annotations

import pytest

from real_engines.engine_process import EngineProcess


@pytest.fixture
async def engines(started: list[EngineProcess]) -> list[EngineProcess]:
    for engine in started:
        await engine.starts()
    return started
