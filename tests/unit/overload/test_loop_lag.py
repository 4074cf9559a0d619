from __future__ import annotations

import signal
import time

import pytest

from inference_engine_proxy_server.overload.loop_lag import BlockerWitness, LoopLag


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sleep(lag: LoopLag, clock: Clock, late_seconds: float) -> None:
    lag.expect(0.1)
    clock.now += 0.1 + late_seconds
    lag.look()


def test_lag_is_how_much_later_than_wanted_a_sleeper_wakes() -> None:
    lag = LoopLag(clock := Clock())
    for late in (0.0, 0.5, 0.02):
        sleep(lag, clock, late)
        assert lag.seconds == pytest.approx(late)


@pytest.mark.parametrize(
    ("lates", "is_lasting"),
    [
        ([0.3, 0.3, 0.3], False),
        ([0.3, 0.3, 0.3, 0.3], True),
        ([0.24] * 20, False),
        ([0.5, 0.5, 0.1, 0.5, 0.5], False),
        ([0.6, 1.0], True),
        ([0.6, 1.0, 0.0], False),
        ([60.0], False),
    ],
    ids=["not-yet", "a-second", "little", "interrupted", "two-looks", "recovered", "one-long-stop"],
)
def test_lag_lasts_when_it_was_too_much_at_each_look_for_a_second(lates: list[float], is_lasting: bool) -> None:
    lag = LoopLag(clock := Clock())
    for late in lates:
        sleep(lag, clock, late)
    assert lag.is_lasting is is_lasting


def blocks_for(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_witness_sees_where_it_stood() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with BlockerWitness(0.05) as witness:
        witness.postpone()
        blocks_for(0.2)
        seen = witness.seen
    assert seen.startswith("blocks_for (test_loop_lag.py:")
    assert " < test_witness_sees_where_it_stood (test_loop_lag.py:" in seen
    assert seen.count(" < ") == 5
    assert signal.getsignal(signal.SIGALRM) == before


def test_witness_that_is_always_postponed_sees_nothing_and_nothing_comes_after_it() -> None:
    with BlockerWitness(0.1) as witness:
        for _ in range(10):
            witness.postpone()
            blocks_for(0.02)
    blocks_for(0.15)  # a timer that still ran would end this process
    assert witness.seen == ""
