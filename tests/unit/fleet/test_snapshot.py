"""A snapshot shows the fleet at one time, and does not change with it."""

from __future__ import annotations

import time
from dataclasses import FrozenInstanceError

import pytest

from inference_engine_proxy_server.fleet.health import Health
from support.clocked_pool import BUSY, Clock, make_pool, publish, ready


def test_snapshot_has_each_backend_with_its_state_and_its_load() -> None:
    clock = Clock()
    pool = make_pool(clock, 2, weights=[2, 1])
    publish(pool, 0, ready(processing=3))
    pool.occupy(pool.backends[0])
    clock.now += 5

    first, second = pool.fleet.snapshot().backends

    assert (first.url, first.state, first.load, first.leases) == (pool.backends[0].url, Health.UP, 4, 1)
    assert (first.weight, first.share, first.serving.models) == (2, 1, ({"id": "m"},))
    assert first.since == pytest.approx(time.time() - 5, abs=1)
    assert (second.state, second.is_live, second.reported_at) == (Health.STARTING, False, 0)


def test_snapshot_stays_as_it_is() -> None:
    pool = make_pool(Clock(), 1)
    publish(pool, 0, ready())
    before = pool.fleet.snapshot()
    publish(pool, 0, BUSY)
    assert before.backends[0].state is Health.UP
    assert pool.fleet.snapshot().backends[0].state is Health.BUSY
    with pytest.raises(FrozenInstanceError):
        before.backends[0].state = Health.DOWN  # type: ignore[misc]


def test_busy_backend_is_live() -> None:
    pool = make_pool(Clock(), 2)
    publish(pool, 1, ready())
    publish(pool, 1, BUSY)
    assert [backend.url for backend in pool.fleet.snapshot().live] == [pool.backends[1].url]
