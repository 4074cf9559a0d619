"""Fixtures and settings for all tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from support import ports

# The speed of a busy machine must not decide whether a property holds.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 on which no server listens."""
    return ports.free_port()
