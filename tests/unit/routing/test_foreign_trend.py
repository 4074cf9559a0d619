"""What other senders have sent since a report is estimated from what their requests did between earlier reports."""

from __future__ import annotations

from random import Random

import pytest

from inference_engine_proxy_server.routing.foreign_trend import ForeignTrend, Report

_SECONDS = 3.0


def learned(foreign_of: list[float], own_of: list[int]) -> ForeignTrend:
    """The trend after reports of one backend, three seconds apart."""
    trend, before = ForeignTrend(), None
    for number, (foreign, own) in enumerate(zip(foreign_of, own_of, strict=True)):
        report = Report(foreign, own, number * _SECONDS)
        trend.learn(before, report)
        before = report
    return trend


def random_counts(seed: int, count: int = 300) -> list[int]:
    random = Random(seed)
    return [random.randint(0, 4) for _ in range(count)]


def test_replicas_that_do_the_same_are_expected_to_go_on_doing_so() -> None:
    own = random_counts(1)
    trend = learned([3.0 * count for count in own], own)

    assert trend.follow == pytest.approx(3.0, rel=0.1)
    assert trend.change(Report(6.0, 2, 0.0), 4) == pytest.approx(6.0, rel=0.1)
    assert trend.change(Report(6.0, 2, 0.0), 2) == 0.0


@pytest.mark.parametrize(
    "foreign", [[5.0] * 300, [float(count) for count in random_counts(2)]], ids=["constant", "random"]
)
def test_other_senders_are_not_expected_to_follow(foreign: list[float]) -> None:
    assert learned(foreign, random_counts(1)).follow < 0.25


def test_senders_that_do_the_opposite_are_not_expected_to_follow() -> None:
    own = random_counts(1)

    assert learned([8.0 - 2 * count for count in own], own).follow == 0.0


def test_no_fewer_than_no_foreign_requests_are_expected() -> None:
    own = random_counts(1)
    trend = learned([3.0 * count for count in own], own)

    assert trend.change(Report(2.0, 4, 0.0), 0) == -2.0


def test_the_error_grows_from_nothing_with_the_age_of_a_report() -> None:
    trend = learned([float(count) for count in random_counts(2)], [0] * 300)
    report = Report(2.0, 0, 100.0)
    errors = [trend.error(report, 100.0 + seconds) for seconds in (0.0, 0.75, 3.0)]

    assert errors[0] == 0.0
    assert errors[2] == pytest.approx(2 * errors[1])
    assert errors[2] == pytest.approx(2.0, rel=0.2)  # the difference of two numbers from 0 to 4: a variance of 4


def test_reports_of_one_moment_teach_nothing() -> None:
    trend, before = ForeignTrend(), Report(0.0, 0, 7.0)
    trend.learn(None, before)
    trend.learn(before, Report(9.0, 3, 7.0))

    assert trend.follow == 0.0
    assert trend.error(before, 70.0) == 0.0


def test_the_trend_is_active_while_backends_have_foreign_requests() -> None:
    assert not learned([0.0] * 10, [3] * 10).is_active
    assert learned([2.0], [0]).is_active
    assert not learned([2.0] * 10 + [0.0] * 1000, [0] * 1010).is_active
