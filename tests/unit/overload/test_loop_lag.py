from __future__ import annotations

import signal
import time

import pytest

from inference_engine_proxy_server.overload.loop_lag import LoopBlockDetector, LoopLag


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sleep(lag: LoopLag, clock: Clock, late_seconds: float) -> None:
    lag.begin_sleep(0.1)
    clock.now += 0.1 + late_seconds
    lag.end_sleep()


def test_lag_is_the_delay_with_which_a_sleeping_task_wakes_up() -> None:
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
    ids=["not-yet", "a-second", "little", "interrupted", "two-measurements", "recovered", "one-long-block"],
)
def test_lag_is_lasting_if_each_measurement_in_a_second_was_too_high(lates: list[float], is_lasting: bool) -> None:
    lag = LoopLag(clock := Clock())
    for late in lates:
        sleep(lag, clock, late)
    assert lag.is_lasting is is_lasting


def blocks_for(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_detector_records_the_stack_of_blocking_code() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with LoopBlockDetector(0.05) as detector:
        detector.rearm()
        blocks_for(0.2)
        stack = detector.blocking_stack
    assert stack.startswith("blocks_for (test_loop_lag.py:")
    assert " < test_detector_records_the_stack_of_blocking_code (test_loop_lag.py:" in stack
    assert stack.count(" < ") == 5
    assert signal.getsignal(signal.SIGALRM) == before


def test_detector_records_nothing_while_rearmed_and_stops_its_timer_at_exit() -> None:
    with LoopBlockDetector(0.1) as detector:
        for _ in range(10):
            detector.rearm()
            blocks_for(0.02)
    blocks_for(0.15)  # SIGALRM from a timer still running would kill this process
    assert detector.blocking_stack == ""
