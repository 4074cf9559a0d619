"""Hours, days and months in UTC, by their first second since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["HOUR_SECONDS", "day_of", "hour_of", "month_of", "next_day", "next_month"]

HOUR_SECONDS = 3600
_DAY_SECONDS = 86_400


def hour_of(seconds: float) -> int:
    """The hour that has this time."""
    return int(seconds) // HOUR_SECONDS * HOUR_SECONDS


def day_of(seconds: float) -> int:
    """The day that has this time."""
    return int(seconds) // _DAY_SECONDS * _DAY_SECONDS


def month_of(seconds: float) -> int:
    """The month that has this time."""
    return int(_first_of_month(seconds).timestamp())


def next_day(seconds: float) -> int:
    """The day after this time."""
    return day_of(seconds) + _DAY_SECONDS


def next_month(seconds: float) -> int:
    """The month after this time."""
    return month_of((_first_of_month(seconds) + timedelta(days=31)).timestamp())


def _first_of_month(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
