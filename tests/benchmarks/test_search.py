"""The search finds the largest size that holds with few probes, and retries a failing one."""

from __future__ import annotations

from typing import Any

import pytest

from load.generator import Load
from suite.search import largest_that, most_streams

SIZES = (10, 20, 30, 40, 50)


@pytest.mark.parametrize(("limit", "largest"), [(5, 0), (10, 10), (35, 30), (50, 50), (99, 50)])
def test_the_largest_size_that_holds_is_found(limit: int, largest: int) -> None:
    assert largest_that(SIZES, lambda size: size <= limit) == largest


def probe(load: Load, *, share: float = 1.0, p99_us: float = 1_000.0) -> dict[str, Any]:
    due = load.connections * load.seconds * 50
    return {"connections": load.connections, "seconds": load.seconds, "events": share * due, "p99_us": p99_us}


def test_a_target_keeps_up_if_enough_events_arrive_in_time() -> None:
    too_few = most_streams(lambda load: probe(load, share=0.97 if load.connections > 20 else 0.99), SIZES)
    too_late = most_streams(lambda load: probe(load, p99_us=300_000.0 if load.connections > 30 else 1.0), SIZES)

    assert (too_few["most"], too_late["most"]) == (20, 30)


def test_a_failed_probe_is_repeated() -> None:
    tried: list[int] = []

    def run(load: Load) -> dict[str, Any]:
        tried.append(load.connections)
        return probe(load, share=0.5 if tried.count(load.connections) == 1 else 1.0)

    assert most_streams(run, SIZES)["most"] == 50
    assert sorted(tried) == sorted([30, 40, 50] * 2)


def test_a_target_that_fails_under_a_load_does_not_keep_up() -> None:
    def run(load: Load) -> dict[str, Any]:
        if load.connections > 10:
            raise RuntimeError("connection refused")
        return probe(load)

    found = most_streams(run, SIZES)

    assert found["most"] == 10
    assert {"connections": 30, "error": "connection refused"} in found["probes"]
