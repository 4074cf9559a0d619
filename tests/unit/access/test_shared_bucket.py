"""One process's part of a limit: with answers of the server, without them, and after a pause."""

from __future__ import annotations

import math

import pytest

from inference_engine_proxy_server.access.limit_exchange import LimitAnswer
from inference_engine_proxy_server.access.shared_bucket import SharedBucket, SharedSlots


def bucket(size: int = 600, share: float = 0.25, *, is_divided: bool = True) -> SharedBucket:
    return SharedBucket(size, share, 0.0, is_divided=is_divided)


def test_before_the_first_answer_a_process_has_its_share() -> None:
    assert bucket().level(0) == 150


def test_only_what_was_granted_may_be_used_and_what_is_left_for_all_is_shown() -> None:
    requests = bucket()
    requests.take(LimitAnswer(20, 300, 400, 0.5), 20, 10.0)
    requests.use(5, 10.0)

    assert requests.level(10) == 15
    assert requests.reading(10.0) == (600, 395, 21)
    assert requests.reading(11.0) == (600, 405, 20)


def test_tokens_are_not_divided() -> None:
    tokens = bucket(is_divided=False)
    tokens.take(LimitAnswer(0, 400, 400, 0.5), 1, 10.0)
    tokens.use(500, 10.0)

    assert tokens.level(10) == -100
    assert tokens.low == -math.inf


def test_use_is_reported_once_and_again_if_there_is_no_answer() -> None:
    requests = bucket()
    requests.use(3, 0.0)
    assert requests.begin_report() == 3
    requests.use(2, 0.0)
    assert requests.begin_report() == 5  # no answer came
    requests.use(1, 0.0)
    requests.take(LimitAnswer(10, 0, 10, 1.0), 10, 1.0)

    assert requests.level(1) == 9  # the grant does not know of the last one
    assert requests.begin_report() == 1
    assert requests.has_news


@pytest.mark.parametrize(
    ("granted", "wanted", "spare", "low"), [(20, 20, 0, 10), (20, 50, 3, 10), (20, 50, 0.5, -math.inf)]
)
def test_more_is_asked_for_early_only_if_there_may_be_more(granted: int, wanted: int, spare: float, low: float) -> None:
    requests = bucket()
    requests.take(LimitAnswer(granted, spare, 100, 0.5), wanted, 0.0)
    assert requests.low == low


def test_without_answers_shares_of_what_was_granted_to_nobody_are_added_once() -> None:
    parts = [bucket() for _ in range(4)]
    shares = [0.5, 0.3, 0.15, 0.05]
    for part, share in zip(parts, shares, strict=True):
        part.take(LimitAnswer(10, 160, 200, share), 10, 0.0)
        for _ in range(5):
            part.go_on_alone(0.0)

    assert sum(part.level(0) for part in parts) == pytest.approx(200)


def test_without_answers_all_parts_together_grow_like_the_limit_up_to_its_size() -> None:
    parts = [bucket(is_divided=is_divided) for is_divided in (True, False, True, False)]
    for part, share in zip(parts, [0.5, 0.3, 0.15, 0.05], strict=True):
        part.take(LimitAnswer(0, 0, 0, share), 10, 0.0)
        for _ in range(30):
            part.go_on_alone(0.1)
    assert sum(part.level(0) for part in parts) == pytest.approx(30)

    for part in parts:
        part.go_on_alone(1000)
    assert sum(part.level(0) for part in parts) == pytest.approx(600)


def test_a_tiny_share_still_grows_to_one_request() -> None:
    part = bucket(size=10)
    part.take(LimitAnswer(0, 0, 0, 0.01), 1, 0.0)
    part.go_on_alone(3600)
    assert part.level(0) == 1


def test_after_a_long_absence_only_the_last_minute_is_held_against_the_limit() -> None:
    """The server has let the bucket grow to its size meanwhile, and no further."""
    part = bucket()
    part.take(LimitAnswer(0, 0, 0, 0.5), 10, 0.0)
    for _ in range(600):  # ten minutes
        part.go_on_alone(1)
        part.use(int(part.level(0)), 0.0)
    assert part.begin_report() == pytest.approx(300)


def test_after_a_short_absence_everything_is_reported() -> None:
    part = bucket()
    part.take(LimitAnswer(0, 0, 0, 0.5), 10, 0.0)
    for _ in range(20):
        part.go_on_alone(1)
        part.use(5, 0.0)
    assert part.begin_report() == 100


def test_after_a_pause_a_process_begins_with_its_share_of_what_may_be_left() -> None:
    part = bucket()
    part.take(LimitAnswer(0, 0, 0, 1.0), 0, 0.0)
    part.begin_use(0.25, 30.0)
    assert part.level(30) == 75
    part.begin_use(0.25, 300.0)
    assert part.level(300) == 150
    part.take(LimitAnswer(0, 0, 0, 1.0), 0, 300.0)
    part.begin_use(0.25, 300.15)
    assert part.level(300.15) == 1  # of 1.5 for all
    part.begin_use(0.25, 300.05)
    assert part.level(300.05) < 1


def test_slots_are_those_that_were_granted() -> None:
    slots = SharedSlots(60, 0.25)
    assert slots.most == 15
    slots.take(LimitAnswer(20, 10, 10, 0.5), 20, 12)
    assert (slots.most, slots.high) == (20, 16)
    slots.go_on_alone()
    slots.go_on_alone()
    assert (slots.most, slots.high) == (25, math.inf)


def test_a_process_that_knows_nothing_has_one_slot_at_least() -> None:
    assert SharedSlots(2, 0.1).most == 1
