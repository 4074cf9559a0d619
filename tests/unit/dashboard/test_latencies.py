from __future__ import annotations

import random

import pytest

from inference_engine_proxy_server.dashboard.latencies import Counts, add, percentile
from inference_engine_proxy_server.dashboard.tally import Tally
from support.records import request_record


def counted(seconds: list[float]) -> Counts:
    tally = Tally()
    for one in seconds:
        tally.count([request_record(first_byte_seconds=one)])
    return tally.latencies


def test_without_durations_there_is_no_percentile() -> None:
    assert percentile({}, 0.5) is None


@pytest.mark.parametrize("seconds", [0.002, 0.05, 1.0, 300.0])
def test_percentile_of_equal_durations_is_that_duration(seconds: float) -> None:
    assert percentile(counted([seconds] * 9), 0.5) == pytest.approx(seconds, rel=0.11)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_percentiles_are_within_a_tenth_of_exact_ones(share: float) -> None:
    draw = random.Random(1)
    durations = sorted(draw.lognormvariate(-1, 1) for _ in range(5000))

    assert percentile(counted(durations), share) == pytest.approx(durations[int(share * 5000)], rel=0.1)


def test_extreme_durations_have_buckets() -> None:
    assert list(counted([0.0])) == [0]
    assert list(counted([1e8])) == list(counted([1e9]))
    assert percentile(counted([0.0]), 0.95) is not None


def test_counts_of_two_workers_have_a_common_percentile() -> None:
    fast, slow = counted([0.1] * 90), counted([5.0] * 10)
    add(fast, slow)

    assert percentile(fast, 0.5) == pytest.approx(0.1, rel=0.11)
    assert percentile(fast, 0.95) == pytest.approx(5.0, rel=0.11)
