"""Limits of API keys: requests and tokens per minute, concurrent requests, and budgets of tokens per day and month."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from inference_engine_proxy_server.access.bucket import Bucket, LocalBucket
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.errors import BudgetError, CapacityError
from inference_engine_proxy_server.usage.periods import next_day, next_month
from inference_engine_proxy_server.usage.spending import Spending, Spent

__all__ = ["Allowance", "Allowances", "Budget"]

_LONGEST_WAIT_SECONDS = 120  # SDKs give up instead of waiting longer

_FIELDS = b"x-ratelimit-limit-@: %d\r\nx-ratelimit-remaining-@: %d\r\nx-ratelimit-reset-@: %ds\r\n"
_REQUEST_FIELDS = _FIELDS.replace(b"@", b"requests")
_TOKEN_FIELDS = _FIELDS.replace(b"@", b"tokens")


class Budget(NamedTuple):
    """A budget of one key, and how much of it is spent.

    Attributes:
        period: ``day`` or ``month``, in UTC.
        tokens: that may be used in it.
        used: so far. It may exceed ``tokens``, because the tokens of a request are known only at its end.
        resets_at: seconds since the epoch.
    """

    period: str
    tokens: int
    used: int
    resets_at: int

    @property
    def left(self) -> int:
        """Tokens that are left."""
        return max(0, self.tokens - self.used)


class Allowance:
    """The remaining use of one key.

    Args:
        key: the key.
        now: a reading of the clock.
        spending: what keys have used of their budgets.

    Attributes:
        key: the key.
        in_flight: its requests in progress.
        most_at_once: requests that may be in progress here at a time; ``None`` for no limit.
    """

    __slots__ = ("_requests", "_spending", "_spent", "_tokens", "in_flight", "key", "most_at_once")

    def __init__(self, key: ApiKey, now: float, spending: Spending) -> None:
        self.key = key
        self.in_flight = 0
        self._spending = spending
        self._spent = _spent(key, spending)
        self._requests = self.bucket("requests", key.requests_per_minute, now)
        self._tokens = self.bucket("tokens", key.tokens_per_minute, now)
        self.most_at_once = key.concurrent_requests

    def __repr__(self) -> str:
        return f"Allowance({self.key.name}, in_flight={self.in_flight})"

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens of a request must be counted."""
        return self._tokens is not None or self._spent is not None

    def change(self, key: ApiKey, now: float) -> None:
        """Apply the limits of ``key``, a reloaded version of the same key; unchanged limits keep their levels."""
        before, self.key = self.key, key
        if key.requests_per_minute != before.requests_per_minute:
            self._requests = self.bucket("requests", key.requests_per_minute, now)
        if key.tokens_per_minute != before.tokens_per_minute:
            self._tokens = self.bucket("tokens", key.tokens_per_minute, now)
        self.most_at_once = key.concurrent_requests
        self._spent = _spent(key, self._spending)

    def bucket(self, _unit: str, size: int | None, now: float) -> Bucket | None:
        """A full bucket for a limit of ``size`` requests or tokens per minute; ``None`` without such a limit."""
        return None if size is None else LocalBucket(size, now)

    def begin(self, now: float) -> None:
        """Count the start of a request.

        Raises:
            CapacityError: 429, a limit is reached; the error says how long to wait.
            BudgetError: 429, a budget is spent; the error says when it is renewed.
        """
        key = self.key
        if self._spent is not None:
            for budget in self.budgets():
                if budget.used >= budget.tokens:
                    raise _spent_budget(budget, self._spending.now())
        if self.most_at_once is not None and self.in_flight >= self.most_at_once:
            raise _exceeded(f"{key.concurrent_requests} requests at a time", 1)
        if self._requests is not None and self._requests.level(now) < 1:
            wait = self._requests.seconds_until(1, now)
            raise _exceeded(f"{key.requests_per_minute} requests a minute", wait)
        if self._tokens is not None and self._tokens.level(now) <= 0:
            wait = self._tokens.seconds_until(1, now)
            raise _exceeded(f"{key.tokens_per_minute} tokens a minute", wait)
        if self._requests is not None:
            self._requests.use(1, now)
        self.in_flight += 1

    def end(self, tokens: int, now: float) -> None:
        """Count the end of a request that used ``tokens``."""
        self.in_flight -= 1
        if self._tokens is not None:
            self._tokens.use(tokens, now)
        if self._spent is not None:
            self._spent.add(tokens)

    def budgets(self) -> Iterator[Budget]:
        """The budgets of the key, the longest first."""
        key, spent, now = self.key, self._spent, self._spending.now()
        if spent is not None and key.tokens_per_month is not None:
            yield Budget("month", key.tokens_per_month, spent.this_month, next_month(now))
        if spent is not None and key.tokens_per_day is not None:
            yield Budget("day", key.tokens_per_day, spent.today, next_day(now))

    def left(self, now: float) -> dict[str, int | None]:
        """``requests_left`` and ``tokens_left``; ``None`` without such a limit."""
        return {
            "requests_left": None if self._requests is None else int(self._requests.level(now)),
            "tokens_left": None if self._tokens is None else int(self._tokens.level(now)),
        }

    def fields(self, now: float) -> bytes:
        """OpenAI's header lines ``x-ratelimit-*``; empty without limits per minute."""
        lines = b""
        if self._requests is not None:
            lines = _REQUEST_FIELDS % self._requests.reading(now)
        if self._tokens is not None:
            lines += _TOKEN_FIELDS % self._tokens.reading(now)
        return lines


class Allowances:
    """The allowance of each key, by name, so that it survives a reload of the key file.

    Args:
        clock: a monotonic clock, in seconds.
        spending: what keys have used of their budgets.
        new_allowance: makes the allowance of a key.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        spending: Spending,
        new_allowance: Callable[[ApiKey, float, Spending], Allowance] = Allowance,
    ) -> None:
        self.clock = clock
        self._spending = spending
        self._new_allowance = new_allowance
        self._by_name: dict[str, Allowance] = {}

    def of(self, key: ApiKey) -> Allowance:
        """The allowance of ``key``."""
        found = self._by_name.get(key.name)
        if found is None:
            found = self._by_name[key.name] = self._new_allowance(key, self.clock(), self._spending)
        elif found.key is not key:
            found.change(key, self.clock())
        return found


def _spent(key: ApiKey, spending: Spending) -> Spent | None:
    has_budget = key.tokens_per_day is not None or key.tokens_per_month is not None
    return spending.of(key.name) if has_budget else None


def _spent_budget(budget: Budget, now: float) -> BudgetError:
    renewed = datetime.fromtimestamp(budget.resets_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    message = f"This key's budget of {budget.tokens} tokens a {budget.period} is used up. It is renewed at {renewed}."
    return BudgetError(message, retry_after_seconds=max(1, math.ceil(budget.resets_at - now)))


def _exceeded(limit: str, seconds: float) -> CapacityError:
    wait = min(_LONGEST_WAIT_SECONDS, max(1, math.ceil(seconds)))
    message = f"This key's limit of {limit} is reached. Try again in {wait} s."
    return CapacityError(message, status=429, code="rate_limit_exceeded", retry_after_seconds=wait)
