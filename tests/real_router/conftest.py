"""Fixtures for tests with a real llama.cpp router."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from real_router.servers import PROGRAM, Router


@pytest.fixture
def router(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Router]:
    """A router; its parameters are further options."""
    if not PROGRAM:
        pytest.skip("LLAMA_SERVER names no llama-server: scripts/test.sh llamacpp-router")
    started = Router(tmp_path, *getattr(request, "param", ()))
    try:
        yield started
    finally:
        started.stop()
