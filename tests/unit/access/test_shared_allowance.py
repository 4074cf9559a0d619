"""A key with shared limits: what it reports, when it is active, and how it goes on with answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inference_engine_proxy_server.access.limit_exchange import LimitAnswer
from inference_engine_proxy_server.access.shared_allowance import SharedAllowance
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.usage.spending import Spending

LIMITS = {"requests_per_minute": 600, "tokens_per_minute": 6000, "concurrent_requests": 40}


class Notes:
    """The other side of an allowance."""

    usual_share = 0.25

    def __init__(self) -> None:
        self.active: list[SharedAllowance] = []
        self.hurries = 0

    def activate(self, allowance: SharedAllowance) -> None:
        self.active.append(allowance)

    def hurry(self) -> None:
        self.hurries += 1


@pytest.fixture
def notes() -> Notes:
    return Notes()


def shared(notes: Notes, **limits: Any) -> SharedAllowance:
    return SharedAllowance(ApiKey("alice", b"", **limits), 0.0, Spending(lambda: 0.0), notes)


def granted(requests: int, slots: int) -> list[LimitAnswer]:
    return [LimitAnswer(requests, 0, 500, 1.0), LimitAnswer(0, 5000, 5000, 1.0), LimitAnswer(slots, 0, 0, 1.0)]


def test_a_key_without_limits_is_never_active(notes: Notes) -> None:
    allowance = shared(notes)
    for _ in range(10):
        allowance.begin(0.0)
    assert (notes.active, allowance.in_flight) == ([], 10)


def test_the_first_request_makes_a_key_active_once(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    for _ in range(10):
        allowance.begin(0.0)
    assert notes.active == [allowance]


def test_a_report_has_what_was_used_and_wants_twice_the_latest_requests(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    for number in range(30):
        allowance.begin(0.0)
        if number >= 5:
            allowance.end(10, 0.0)

    requests, tokens, slots = allowance.report(0.0)
    assert [one.name for one in (requests, tokens, slots)] == [
        "requests:alice:600", "tokens:alice:6000", "slots:alice:40"
    ]  # fmt: skip
    assert [one.used for one in (requests, tokens, slots)] == [30, 250, 5]
    assert [one.want for one in (requests, tokens, slots)] == [60, 1, 40]
    assert [one.level for one in (requests, tokens, slots)] == [600, 6000, 40]


def test_rejected_requests_count_as_wanted(notes: Notes) -> None:
    allowance = shared(notes, concurrent_requests=8)
    rejected = 0
    for _ in range(5):
        try:
            allowance.begin(0.0)
        except CapacityError:
            rejected += 1
    assert rejected == 3
    assert [one.want for one in allowance.report(0.0)] == [8]


def test_only_what_was_granted_is_admitted(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    allowance.begin(0.0)
    allowance.report(0.0)
    allowance.take(granted(3, 40), 0.0)
    for _ in range(3):
        allowance.begin(0.0)
    with pytest.raises(CapacityError, match="600 requests a minute"):
        allowance.begin(0.0)
    allowance.take(granted(100, 6), 0.0)
    for _ in range(2):
        allowance.begin(0.0)
    with pytest.raises(CapacityError, match="40 requests at a time"):
        allowance.begin(0.0)


def test_what_is_left_for_all_is_shown(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    allowance.begin(0.0)
    allowance.report(0.0)
    allowance.take(granted(3, 40), 0.0)
    allowance.begin(0.0)
    assert allowance.left(0.0) == {"requests_left": 499, "tokens_left": 5000}
    assert b"x-ratelimit-remaining-requests: 499\r\n" in allowance.fields(0.0)


def test_more_is_asked_for_at_once_when_half_of_a_grant_is_used(notes: Notes) -> None:
    allowance = shared(notes, requests_per_minute=600)
    allowance.begin(0.0)
    allowance.report(0.0)
    allowance.take([LimitAnswer(9, 100, 500, 1.0)], 0.0)
    for _ in range(4):
        allowance.begin(0.0)
    assert notes.hurries == 0
    allowance.begin(0.0)
    assert notes.hurries == 1


def test_an_idle_key_gives_its_grants_back_and_rests(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    allowance.begin(0.0)
    allowance.end(5, 0.0)
    allowance.report(0.0)
    allowance.take(granted(9, 9), 0.0)
    assert not allowance.rest(0.0)
    assert [one.want for one in allowance.report(0.5)] == [18, 1, 1]
    allowance.take(granted(9, 9), 0.5)
    assert [one.want for one in allowance.report(1.5)] == [0, 0, 0]
    allowance.take(granted(0, 0), 1.5)
    assert allowance.rest(1.5)
    allowance.begin(10.0)
    assert notes.active == [allowance, allowance]


def test_a_request_in_progress_keeps_its_slot(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    allowance.begin(0.0)
    allowance.report(0.0)
    allowance.take(granted(9, 9), 0.0)
    assert [one.want for one in allowance.report(5.0)] == [0, 0, 1]
    allowance.take(granted(0, 1), 5.0)
    assert not allowance.rest(5.0)
    assert not allowance.is_due(5.1)
    assert allowance.is_due(5.6)


def test_a_request_that_comes_while_grants_are_given_back_begins_anew(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    allowance.begin(0.0)
    allowance.end(0, 0.0)
    allowance.report(0.0)
    allowance.take(granted(9, 9), 0.0)
    allowance.report(2.0)
    allowance.begin(2.0)
    allowance.end(0, 2.0)
    allowance.take(granted(0, 0), 2.0)
    assert not allowance.rest(2.0)
    assert notes.hurries == 1
    allowance.begin(2.0)


def test_a_changed_limit_begins_anew_and_an_unchanged_one_goes_on(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    allowance.begin(0.0)
    allowance.report(0.0)
    allowance.take(granted(9, 9), 0.0)
    allowance.change(replace(allowance.key, requests_per_minute=60), 0.0)
    assert allowance.left(0.0) == {"requests_left": 60, "tokens_left": 5000}
    assert allowance.most_at_once == 9
    allowance.change(replace(allowance.key, concurrent_requests=None), 0.0)
    assert allowance.most_at_once is None


def test_answers_to_limits_that_have_changed_meanwhile_are_ignored(notes: Notes) -> None:
    allowance = shared(notes, **LIMITS)
    allowance.begin(0.0)
    allowance.report(0.0)
    allowance.change(replace(allowance.key, requests_per_minute=None, concurrent_requests=8), 0.0)
    allowance.take(granted(5, 5), 0.0)
    assert allowance.left(0.0) == {"requests_left": None, "tokens_left": 5000}
    assert allowance.most_at_once == 2


def test_nothing_beyond_the_limit_is_wanted(notes: Notes) -> None:
    allowance = shared(notes, requests_per_minute=20)
    for _ in range(5):
        allowance.begin(0.0)
    for _ in range(50):
        with pytest.raises(CapacityError):
            allowance.begin(0.0)
    assert [one.want for one in allowance.report(0.0)] == [20]
