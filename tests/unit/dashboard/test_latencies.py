from __future__ import annotations

import random

import pytest

from inference_engine_proxy_server.dashboard.latencies import Counts, add, bucket_of, percentile


def counted(seconds: list[float]) -> Counts:
    counts: Counts = {}
    for one in seconds:
        add(counts, {bucket_of(one): 1})
    return counts


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
    assert bucket_of(0.0) == 0
    assert bucket_of(1e9) == bucket_of(1e8)
    assert percentile(counted([0.0]), 0.95) is not None


def test_counts_of_two_workers_have_a_common_percentile() -> None:
    fast, slow = counted([0.1] * 90), counted([5.0] * 10)
    add(fast, slow)

    assert percentile(fast, 0.5) == pytest.approx(0.1, rel=0.11)
    assert percentile(fast, 0.95) == pytest.approx(5.0, rel=0.11)
