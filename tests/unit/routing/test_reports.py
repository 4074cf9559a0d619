"""Reports of backends: what a report costs does not depend on the size of the fleet."""

from __future__ import annotations

import sys
from types import FrameType

import pytest

from support.clocked_pool import Clock, publish, ready, ready_pool


def calls_of_a_report(backends: int) -> int:
    """The number of calls, in Python and C, while one of ``backends`` reports."""
    pool = ready_pool(Clock(), backends)
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        del frame, argument
        count += event in ("call", "c_call")

    others = sys.getprofile()
    sys.setprofile(note)
    try:
        publish(pool, 0, ready())
    finally:
        sys.setprofile(others)
    return count


def test_a_report_costs_the_same_in_a_fleet_of_any_size() -> None:
    assert calls_of_a_report(256) == pytest.approx(calls_of_a_report(2), abs=2)
