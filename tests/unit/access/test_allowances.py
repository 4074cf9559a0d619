"""Rate limits of API keys."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.access.allowances import Allowance, Allowances, Budget
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.errors import BudgetError, CapacityError
from inference_engine_proxy_server.usage.spending import Spending
from inference_engine_proxy_server.wire.error_replies import error_fields


def key(**limits: Any) -> ApiKey:
    return ApiKey("alice", b"", **limits)


def allowance(**limits: int) -> Allowance:
    return Allowance(key(**limits), 0.0, Spending(lambda: 0.0))


def refusal(of: Allowance, now: float) -> CapacityError:
    with pytest.raises(CapacityError) as caught:
        of.begin(now)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


def fields(of: Allowance, now: float) -> dict[str, str]:
    lines = of.fields(now).decode().split("\r\n")
    assert lines.pop() == ""
    return dict(line.split(": ") for line in lines)


def serve(of: Allowance, now: float, tokens: int = 0) -> None:
    """One request that ends at once."""
    of.begin(now)
    of.end(tokens, now)


def test_without_limits_only_requests_in_progress_are_counted() -> None:
    free = allowance()

    for _ in range(1000):
        free.begin(0)

    assert free.in_flight == 1000
    assert free.left(0) == {"requests_left": None, "tokens_left": None}
    assert free.fields(0) == b""
    assert not free.counts_tokens


# --- requests per minute


def test_at_most_the_requests_of_a_minute_may_come_at_once() -> None:
    three = allowance(requests_per_minute=3)

    for _ in range(3):
        serve(three, 0)

    error = refusal(three, 0)
    assert error.message == "This key's limit of 3 requests a minute is reached. Try again in 20 s."
    assert error.retry_after_seconds == 20


def test_the_limit_refills_evenly() -> None:
    three = allowance(requests_per_minute=3)
    for _ in range(3):
        serve(three, 0)

    refusal(three, 19.9)
    serve(three, 20)
    refusal(three, 20.1)
    serve(three, 40)


def test_a_long_pause_saves_up_no_more_than_a_minute() -> None:
    three = allowance(requests_per_minute=3)
    serve(three, 0)

    for _ in range(3):
        serve(three, 10_000)

    refusal(three, 10_000)


def test_a_refused_request_is_not_counted() -> None:
    one = allowance(requests_per_minute=1)
    serve(one, 0)

    for now in range(1, 60):
        refusal(one, now)

    serve(one, 60)


def test_a_wait_of_retry_after_is_long_enough() -> None:
    for limit in (1, 2, 7, 59, 60, 61, 1000):
        some = allowance(requests_per_minute=limit)
        for _ in range(limit):
            serve(some, 0)
        wait = refusal(some, 0).retry_after_seconds
        assert wait
        serve(some, wait)


# --- tokens per minute


def test_tokens_are_counted_when_the_request_ends() -> None:
    hundred = allowance(tokens_per_minute=100)
    hundred.begin(0)

    assert hundred.left(0)["tokens_left"] == 100
    hundred.end(30, 0)

    assert hundred.left(0)["tokens_left"] == 70


def test_tokens_beyond_the_limit_delay_the_next_request() -> None:
    hundred = allowance(tokens_per_minute=100)
    serve(hundred, 0, tokens=150)

    error = refusal(hundred, 0)
    assert error.message == "This key's limit of 100 tokens a minute is reached. Try again in 31 s."
    assert (hundred.left(0)["tokens_left"], fields(hundred, 0)["x-ratelimit-remaining-tokens"]) == (-50, "0")

    refusal(hundred, 29)
    serve(hundred, 31)


def test_requests_that_started_before_the_limit_was_reached_may_finish() -> None:
    hundred = allowance(tokens_per_minute=100)
    for _ in range(3):
        hundred.begin(0)
    hundred.end(100, 0)

    refusal(hundred, 0)
    hundred.end(100, 0)
    hundred.end(100, 0)

    assert hundred.left(0)["tokens_left"] == -200
    assert hundred.in_flight == 0


def test_a_request_refused_by_the_token_limit_is_not_counted() -> None:
    both = allowance(requests_per_minute=10, tokens_per_minute=10)
    serve(both, 0, tokens=10)
    before = both.left(0)["requests_left"]

    refusal(both, 0)

    assert both.left(0)["requests_left"] == before


# --- concurrent requests


def test_concurrent_requests_are_limited() -> None:
    two = allowance(concurrent_requests=2)
    two.begin(0)
    two.begin(0)

    error = refusal(two, 0)
    assert error.message == "This key's limit of 2 requests at a time is reached. Try again in 1 s."
    assert error.retry_after_seconds == 1
    assert two.in_flight == 2

    two.end(0, 0)
    two.begin(0)


def test_a_request_refused_by_concurrency_is_not_counted() -> None:
    both = allowance(concurrent_requests=1, requests_per_minute=2)
    both.begin(0)

    refusal(both, 0)

    assert both.left(0)["requests_left"] == 1


# --- replies


@pytest.mark.parametrize("limit", [1, 2, 60, 10**9])
@pytest.mark.parametrize("debt", [0, 1, 10**12])
def test_retry_after_is_between_1_and_120_seconds(limit: int, debt: int) -> None:
    some = allowance(tokens_per_minute=limit)
    serve(some, 0, tokens=limit + debt)

    wait = refusal(some, 0).retry_after_seconds

    assert wait is not None
    assert 1 <= wait <= 120


def test_the_header_lines_are_those_of_openai() -> None:
    both = allowance(requests_per_minute=60, tokens_per_minute=1000)
    serve(both, 0, tokens=250)

    assert fields(both, 0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "15s",
    }


def test_only_configured_limits_have_header_lines() -> None:
    assert fields(allowance(requests_per_minute=60), 0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "60",
        "x-ratelimit-reset-requests": "0s",
    }
    assert not fields(allowance(concurrent_requests=1), 0)


# --- reloaded keys


def test_an_unchanged_reloaded_key_keeps_its_level() -> None:
    allowances = Allowances(lambda: 0.0, Spending(lambda: 0.0))
    first = key(requests_per_minute=2, tokens_per_minute=100, concurrent_requests=5)
    before = allowances.of(first)
    before.begin(0)
    again = replace(first, digest=b"new", models=frozenset({"m"}), priority=1)

    after = allowances.of(again)

    assert after is before
    assert after.key is again
    assert (after.in_flight, after.left(0)["requests_left"]) == (1, 1)


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "concurrent_requests"])
def test_a_changed_limit_applies_at_once_and_the_others_keep_their_levels(limit: str) -> None:
    allowances = Allowances(lambda: 0.0, Spending(lambda: 0.0))
    limits = {"requests_per_minute": 9, "tokens_per_minute": 9, "concurrent_requests": 9}
    serve(allowances.of(key(**limits)), 0, tokens=3)

    after = allowances.of(key(**(limits | {limit: 1})))

    assert after.left(0) == {
        "requests_left": 1 if limit == "requests_per_minute" else 8,
        "tokens_left": 1 if limit == "tokens_per_minute" else 6,
    }
    if limit == "concurrent_requests":
        after.begin(0)
    else:
        serve(after, 0, tokens=6)
    refusal(after, 0)


def test_a_removed_limit_no_longer_applies() -> None:
    allowances = Allowances(lambda: 0.0, Spending(lambda: 0.0))
    limited = ApiKey("alice", b"", requests_per_minute=1, tokens_per_minute=1, concurrent_requests=1)
    allowances.of(limited).begin(0)

    free = allowances.of(ApiKey("alice", b""))

    free.begin(0)
    assert (free.in_flight, free.fields(0), free.counts_tokens) == (2, b"", False)


def test_changed_limits_still_count_requests_in_progress() -> None:
    allowances = Allowances(lambda: 0.0, Spending(lambda: 0.0))
    before = allowances.of(ApiKey("alice", b"", concurrent_requests=2))
    before.begin(0)

    after = allowances.of(ApiKey("alice", b"", concurrent_requests=1))
    refusal(after, 0)
    before.end(0, 0)

    after.begin(0)
    assert after.in_flight == 1


def test_each_key_name_has_its_own_allowance() -> None:
    allowances = Allowances(lambda: 0.0, Spending(lambda: 0.0))
    alice, bob = (allowances.of(ApiKey(name, b"", requests_per_minute=1)) for name in ("alice", "bob"))

    serve(alice, 0)

    refusal(alice, 0)
    serve(bob, 0)


# --- random sequences

PAUSES = st.lists(st.floats(0, 200, allow_subnormal=False), max_size=150)


@given(limit=st.integers(1, 50), pauses=PAUSES)
def test_requests_never_exceed_the_limit_and_its_refill(limit: int, pauses: list[float]) -> None:
    some = allowance(requests_per_minute=limit)
    now = 0.0
    admitted: list[float] = []
    for pause in pauses:
        now += pause
        with contextlib.suppress(CapacityError):
            serve(some, now)
            admitted.append(now)

    for first, began in enumerate(admitted):
        for last, ended in enumerate(admitted[first:], 1):
            assert last <= limit + limit * (ended - began) / 60 + 1e-6


@given(limit=st.integers(1, 5000), pauses=PAUSES, answers=st.lists(st.integers(0, 20_000), min_size=1))
def test_tokens_exceed_the_limit_by_at_most_one_answer(limit: int, pauses: list[float], answers: list[int]) -> None:
    some = allowance(tokens_per_minute=limit)
    now, used = 0.0, 0
    for number, pause in enumerate(pauses):
        now += pause
        tokens = answers[number % len(answers)]
        try:
            serve(some, now, tokens)
        except CapacityError:
            assert used > 0
        else:
            used += tokens

    assert used <= limit + limit * now / 60 + max(answers) + 1e-3


@given(limit=st.integers(1, 1000), uses=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 5000)), max_size=50))
def test_the_header_lines_are_always_valid_integers(limit: int, uses: list[tuple[float, int]]) -> None:
    some = allowance(requests_per_minute=limit, tokens_per_minute=limit)
    now = 0.0
    for pause, tokens in uses:
        now += pause
        with contextlib.suppress(CapacityError):
            serve(some, now, tokens)
        lines = fields(some, now)
        assert all(re.fullmatch(r"\d+s?", value) for value in lines.values())
        assert 0 <= int(lines["x-ratelimit-remaining-requests"]) <= limit
        assert math.isfinite(float(lines["x-ratelimit-reset-tokens"].removesuffix("s")))


# --- budgets

NOON = datetime(2026, 11, 29, 12, 0, 0, 500_000, tzinfo=UTC).timestamp()
MIDNIGHT = datetime(2026, 11, 30, tzinfo=UTC).timestamp()


class Budgeted:
    """A key with budgets, and the time of day."""

    def __init__(self, **budgets: int) -> None:
        self.now = NOON
        self.allowance = Allowance(key(**budgets), 0.0, Spending(lambda: self.now))

    def use(self, tokens: int) -> None:
        self.allowance.begin(0.0)
        self.allowance.end(tokens, 0.0)

    def refusal(self) -> BudgetError:
        with pytest.raises(BudgetError) as caught:
            self.allowance.begin(0.0)
        return caught.value


def test_a_spent_budget_says_when_it_is_renewed() -> None:
    budgeted = Budgeted(tokens_per_day=100)
    budgeted.use(99)
    budgeted.use(50)
    error = budgeted.refusal()
    assert (error.status, error.code, error.retry_after_seconds) == (429, "insufficient_quota", 12 * 3600)
    assert error.message == ("This key's budget of 100 tokens a day is used up. It is renewed at 2026-11-30 00:00 UTC.")
    assert budgeted.allowance.in_flight == 0
    assert b"x-should-retry: false" in error_fields(error, "/v1/chat/completions", "id")
    budgeted.now = MIDNIGHT
    budgeted.use(1)


def test_of_two_spent_budgets_the_longer_one_is_reported() -> None:
    budgeted = Budgeted(tokens_per_day=100, tokens_per_month=150)
    budgeted.use(120)
    assert "100 tokens a day" in budgeted.refusal().message
    budgeted.now = MIDNIGHT
    budgeted.use(40)
    assert "150 tokens a month is used up. It is renewed at 2026-12-01 00:00 UTC" in budgeted.refusal().message
    budgeted.now = MIDNIGHT + 86_400
    budgeted.use(1)


def test_budgets_are_described_with_what_is_left() -> None:
    budgeted = Budgeted(tokens_per_day=100, tokens_per_month=150)
    budgeted.use(120)
    month, day = budgeted.allowance.budgets()
    assert day == Budget("day", 100, 120, int(MIDNIGHT))
    assert month == Budget("month", 150, 120, int(MIDNIGHT) + 86_400)
    assert (day.left, month.left) == (0, 30)


def test_a_reload_changes_a_budget_and_keeps_what_is_used() -> None:
    budgeted = Budgeted(tokens_per_day=100)
    budgeted.use(120)
    budgeted.allowance.change(key(tokens_per_day=200), 0.0)
    budgeted.use(80)
    budgeted.refusal()
    budgeted.allowance.change(key(), 0.0)
    budgeted.use(1)
    assert not list(budgeted.allowance.budgets())
    assert not budgeted.allowance.counts_tokens
