from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.routing.expected_time.speeds import Speeds, fill_gaps


def reading_at(rate: float, requests: int = 15, tokens: float = 1000) -> Speeds:
    speeds = Speeds()
    for _ in range(requests):
        speeds.note_reading(tokens, tokens / rate)
    return speeds


def writing(step: float, stream: float, requests: int = 40) -> Speeds:
    speeds = Speeds()
    for at in range(requests):
        streams = 1 + at % 8
        speeds.note_writing(100, 100 * (step + stream * streams), streams)
    return speeds


# --- reading


def test_reading_speed_is_learned_from_measurements() -> None:
    assert reading_at(5000).reads == pytest.approx(5000)


@pytest.mark.parametrize("tokens", [1000, 100_000])
def test_one_stalled_request_changes_hardly_anything(tokens: float) -> None:
    speeds = reading_at(5000)
    speeds.note_reading(tokens, 300)
    assert speeds.reads == pytest.approx(5000)


@pytest.mark.parametrize("factor", [0.05, 0.5, 3, 20])
def test_a_real_change_is_followed_within_ten_requests(factor: float) -> None:
    speeds = reading_at(5000)
    for _ in range(10):
        speeds.note_reading(1000, 1000 / (5000 * factor))
    assert speeds.reads == pytest.approx(5000 * factor)


def test_short_prompts_that_take_a_whole_step_do_not_distort_the_reading_speed() -> None:
    speeds = Speeds()
    for at in range(15):
        tokens = 4000 if at % 3 == 0 else 8
        speeds.note_reading(tokens, 0.02 + tokens / 5000)
    assert speeds.reads == pytest.approx(5000, rel=0.05)


def test_reading_speed_is_within_ten_percent_despite_noise_and_stalls() -> None:
    speeds, draw = Speeds(), random.Random(1)
    for _ in range(200):
        tokens = draw.uniform(100, 8000)
        stall = 20 if draw.random() < 0.1 else 0
        speeds.note_reading(tokens, tokens / 5000 * draw.uniform(0.9, 1.1) + stall)
    assert speeds.reads == pytest.approx(5000, rel=0.1)


@given(st.lists(st.tuples(st.floats(-10, 1e9), st.floats(-10, 1e6)), max_size=40))
def test_reading_speed_is_positive_after_any_measurements(reports: list[tuple[float, float]]) -> None:
    speeds = Speeds()
    for tokens, seconds in reports:
        speeds.note_reading(tokens, seconds)
    assert speeds.reads > 0


# --- writing


@pytest.mark.parametrize(("step", "stream"), [(0.02, 0.001), (0.007, 0.0008), (0.02, 0.0), (0.0, 0.005)])
def test_time_per_token_is_a_step_plus_a_share_for_each_stream(step: float, stream: float) -> None:
    speeds = writing(step, stream)
    for streams in (1, 4, 16):
        assert speeds.seconds_a_token(streams) == pytest.approx(step + stream * streams, rel=0.02)


def test_constant_concurrency_yields_the_measured_time_and_no_steeper_line() -> None:
    speeds = Speeds()
    for _ in range(30):
        speeds.note_writing(100, 2.5, 4)
    assert speeds.seconds_a_token(4) == pytest.approx(0.025)
    assert speeds.seconds_a_token(8) >= 0.0249


def test_one_stalled_answer_moves_the_line_by_less_than_a_quarter() -> None:
    speeds = writing(0.02, 0.001)
    speeds.note_writing(10, 600, 8)
    for streams in (1, 8):
        assert speeds.seconds_a_token(streams) == pytest.approx(0.02 + 0.001 * streams, rel=0.25)


@pytest.mark.parametrize("factor", [0.05, 0.2, 0.5, 1.4, 3, 20])
def test_a_real_change_of_writing_speed_is_followed_within_twenty_requests(factor: float) -> None:
    speeds = writing(0.02, 0.001)
    for at in range(20):
        streams = 1 + at % 8
        speeds.note_writing(100, 100 * factor * (0.02 + 0.001 * streams), streams)
    assert speeds.seconds_a_token(4) == pytest.approx(factor * 0.024, rel=0.15)


@given(st.lists(st.tuples(st.integers(-1, 10**6), st.floats(-10, 1e6), st.floats(0, 500)), max_size=40))
def test_more_streams_are_never_faster_after_any_measurements(reports: list[tuple[int, float, float]]) -> None:
    speeds = Speeds()
    for report in reports:
        speeds.note_writing(*report)
    assert 0 <= speeds.seconds_a_token(0) <= speeds.seconds_a_token(1) <= speeds.seconds_a_token(100)
    assert speeds.seconds_a_token(1) > 0


# --- unknown speeds


def test_two_requests_are_too_few_to_know_a_speed() -> None:
    speeds = Speeds()
    at_first = speeds.reads, speeds.seconds_a_token(1)
    for _ in range(2):
        speeds.note_reading(1000, 100)
        speeds.note_writing(100, 100, 1)
    assert (speeds.reads, speeds.seconds_a_token(1)) == at_first
    assert not speeds.is_known
    assert not speeds.writing_is_known


def test_a_new_backend_gets_the_median_speeds_of_the_others() -> None:
    new = Speeds()
    known = [writing(step, step / 10) for step in (0.01, 0.02, 0.9)]
    for one, rate in zip(known, (100, 5000, 6000), strict=True):
        for _ in range(5):
            one.note_reading(1000, 1000 / rate)
    fill_gaps([*known, new])
    assert new.reads == pytest.approx(5000)
    assert new.seconds_a_token(1) == pytest.approx(0.022)
    assert known[0].reads == pytest.approx(100)
    assert not new.is_known


def test_all_backends_have_equal_speeds_while_none_is_known() -> None:
    fleet = [Speeds(), Speeds()]
    fill_gaps(fleet)
    assert fleet[0].reads == fleet[1].reads > 0
    assert fleet[0].seconds_a_token(3) == fleet[1].seconds_a_token(3) > 0
    fill_gaps([])
