"""What keys have used of their budgets: in memory, in the file, and at the turn of a day or month."""

from __future__ import annotations

from datetime import UTC, datetime

from inference_engine_proxy_server.usage.periods import day_of, hour_of, month_of, next_day, next_month
from inference_engine_proxy_server.usage.spending import Spending, Spent, StoredTokens


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class Clock:
    def __init__(self, text: str) -> None:
        self.now = at(text)

    def __call__(self) -> float:
        return self.now


def used(spent: Spent) -> tuple[int, int]:
    return spent.today, spent.this_month


def stored(now: float, today: int, this_month: int, key: str = "a") -> StoredTokens:
    return StoredTokens(day_of(now), month_of(now), {key: (today, this_month)})


def test_periods_begin_and_end_in_utc() -> None:
    now = at("2028-02-28 23:59:59.9")
    assert hour_of(now) == at("2028-02-28 23:00")
    assert (day_of(now), next_day(now)) == (at("2028-02-28"), at("2028-02-29"))
    assert (month_of(now), next_month(now)) == (at("2028-02-01"), at("2028-03-01"))
    assert next_month(at("2026-12-31 12:00")) == at("2027-01-01")
    assert [next_month(at(f"2026-{month:02}-01")) for month in range(1, 12)] == [
        at(f"2026-{month:02}-01") for month in range(2, 13)
    ]


def test_tokens_count_until_the_day_and_the_month_end() -> None:
    clock = Clock("2026-11-29 23:59")
    spent = Spending(clock).of("a")
    spent.add(5)
    assert used(spent) == (5, 5)
    clock.now = at("2026-11-30 00:00")
    assert used(spent) == (0, 5)
    spent.add(2)
    assert used(spent) == (2, 7)
    clock.now = at("2026-12-01 00:00")
    assert used(spent) == (0, 0)


def test_each_key_has_its_own_tokens() -> None:
    spending = Spending(Clock("2026-11-29"))
    spending.of("a").add(5)
    assert used(spending.of("b")) == (0, 0)
    assert used(spending.of("a")) == (5, 5)


def test_the_file_replaces_what_was_written_and_keeps_what_came_meanwhile() -> None:
    clock = Clock("2026-11-29 12:00")
    spending = Spending(clock)
    spent = spending.of("a")
    spent.add(5)
    spending.begin_writing()
    spent.add(2)
    assert used(spent) == (7, 7)
    spending.end_writing(stored(clock.now, 105, 1005))  # other workers have used 100 today, and 900 before
    assert used(spent) == (107, 1007)
    spending.begin_writing()
    spending.end_writing(stored(clock.now, 107, 1007))
    assert used(spent) == (107, 1007)


def test_what_could_not_be_written_still_counts_and_is_written_later() -> None:
    clock = Clock("2026-11-29 12:00")
    spending = Spending(clock)
    spent = spending.of("a")
    spent.add(5)
    for _ in range(3):
        spending.begin_writing()
        spent.add(1)
        spending.abandon_writing()
    assert used(spent) == (8, 8)
    spending.begin_writing()
    spending.end_writing(stored(clock.now, 8, 8))
    assert used(spent) == (8, 8)


def test_a_day_that_ends_while_it_is_written_does_not_count_for_the_next_one() -> None:
    clock = Clock("2026-11-29 23:59:59")
    spending = Spending(clock)
    spent = spending.of("a")
    spent.add(5)
    spending.begin_writing()
    sums = stored(clock.now, 5, 50)
    clock.now = at("2026-11-30 00:00:00.5")
    spent.add(1)
    spending.end_writing(sums)
    assert used(spent) == (1, 51)


def test_a_key_that_gets_a_budget_later_starts_with_what_the_file_has() -> None:
    clock = Clock("2026-11-29 12:00")
    spending = Spending(clock)
    assert not spending.has_keys
    spending.end_writing(stored(clock.now, 10, 20))
    assert used(spending.of("a")) == (10, 20)
    assert spending.has_keys
