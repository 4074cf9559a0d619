"""Fixtures and settings for all tests."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support import ports
from support.tiny_gguf import ModelShape, write_tiny_gguf

# The speed of a busy machine must not decide whether a property holds.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """Exempt the thousands of collected tests from garbage collection, which would block event loops for a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 on which no server listens."""
    return ports.free_port()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 10,000 tokens a second."""
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def slow_model(tiny_model: Path) -> Path:
    """Slow enough that a long reply takes seconds."""
    return write_tiny_gguf(tiny_model.with_name("slow.gguf"), ModelShape(embedding=384, layers=6, context=8192))


@pytest.fixture(scope="session")
def large_model(tiny_model: Path) -> Path:
    """Large enough that loading takes an observable time."""
    return write_tiny_gguf(tiny_model.with_name("large.gguf"), ModelShape(embedding=512, layers=8))
