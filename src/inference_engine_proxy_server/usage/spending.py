"""The tokens that each key has used today and this month, in UTC: what budgets are compared with.

Tokens are added in memory as requests end. Where there is a usage file, or a server of shared state, its sums replace
what has been written to it. Therefore a restart forgets nothing, and all processes know what the others have counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from inference_engine_proxy_server.usage.periods import day_of, month_of

__all__ = ["Spending", "Spent", "StoredTokens"]


class StoredTokens(NamedTuple):
    """The sums of the usage file, or of the server of shared state, by the names of keys.

    Attributes:
        day, month: of the sums, see :mod:`~.periods`.
        by_key: tokens in this day, and in this month.
    """

    day: int
    month: int
    by_key: Mapping[str, tuple[int, int]]


class _Period:
    """One day or month: stored tokens, tokens that are being written, and tokens that have been added since."""

    __slots__ = ("begins_at", "new", "stored", "writing")

    def __init__(self, begins_at: int, stored: int = 0) -> None:
        self.begins_at = begins_at
        self.stored = stored
        self.writing = self.new = 0

    @property
    def tokens(self) -> int:
        return self.stored + self.writing + self.new

    def begin_writing(self) -> None:
        self.writing, self.new = self.writing + self.new, 0

    def end_writing(self, begins_at: int, stored: int) -> None:
        if begins_at == self.begins_at:
            self.stored, self.writing = stored, 0

    def abandon_writing(self) -> None:
        self.writing, self.new = 0, self.writing + self.new


class Spent:
    """The tokens of one key.

    Args:
        now: seconds since the epoch.
        stored: the sums as last read.
        key: the name of the key.
    """

    __slots__ = ("_day", "_key", "_month", "_now")

    def __init__(self, now: Callable[[], float], stored: StoredTokens, key: str) -> None:
        self._now = now
        self._key = key
        today, this_month = stored.by_key.get(key, (0, 0))
        self._day = _Period(stored.day, today)
        self._month = _Period(stored.month, this_month)

    @property
    def today(self) -> int:
        """Tokens used today."""
        self._begin_periods()
        return self._day.tokens

    @property
    def this_month(self) -> int:
        """Tokens used this month."""
        self._begin_periods()
        return self._month.tokens

    def add(self, tokens: int) -> None:
        """Add the tokens of a request that has just ended."""
        self._begin_periods()
        self._day.new += tokens
        self._month.new += tokens

    def begin_writing(self) -> tuple[int, int]:
        """What was added so far is about to be written; returns the tokens of this day and this month to write."""
        self._begin_periods()
        self._day.begin_writing()
        self._month.begin_writing()
        return self._day.writing, self._month.writing

    def end_writing(self, stored: StoredTokens) -> None:
        """It was written; these are the new sums."""
        today, this_month = stored.by_key.get(self._key, (0, 0))
        self._day.end_writing(stored.day, today)
        self._month.end_writing(stored.month, this_month)

    def abandon_writing(self) -> None:
        """It could not be written."""
        self._day.abandon_writing()
        self._month.abandon_writing()

    def _begin_periods(self) -> None:
        now = self._now()
        if day_of(now) != self._day.begins_at:
            self._day = _Period(day_of(now))
            if month_of(now) != self._month.begins_at:
                self._month = _Period(month_of(now))


class Spending:
    """The tokens of all keys that have budgets.

    Args:
        now: seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._stored = StoredTokens(day_of(now()), month_of(now()), {})
        self._by_key: dict[str, Spent] = {}

    @property
    def has_keys(self) -> bool:
        """Whether any key has a budget."""
        return bool(self._by_key)

    def of(self, key: str) -> Spent:
        """The tokens of the key of this name, which has a budget."""
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = Spent(self.now, self._stored, key)
        return found

    def stored(self, day: int, month: int) -> Mapping[str, tuple[int, int]]:
        """The sums as last read, by the names of keys, of this day and month; 0 of others."""
        at = self._stored
        return {
            key: (today if at.day == day else 0, this_month if at.month == month else 0)
            for key, (today, this_month) in at.by_key.items()
        }

    def begin_writing(self) -> Mapping[str, tuple[int, int]]:
        """What was added so far is about to be written; returns the tokens of this day and month, by key.

        It must end, or be abandoned, before it begins again.
        """
        return {key: spent.begin_writing() for key, spent in self._by_key.items()}

    def end_writing(self, stored: StoredTokens) -> None:
        """It was written; these are the new sums."""
        self._stored = stored
        for spent in self._by_key.values():
            spent.end_writing(stored)

    def abandon_writing(self) -> None:
        """It could not be written."""
        for spent in self._by_key.values():
            spent.abandon_writing()
