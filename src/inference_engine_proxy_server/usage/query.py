"""Queries of the ledger: which rows, and how they are grouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

from inference_engine_proxy_server.usage.counts import COUNTS, Counts
from inference_engine_proxy_server.usage.ledger_file import open_ledger
from inference_engine_proxy_server.usage.periods import HOUR_SECONDS, day_of, hour_of, next_day

__all__ = ["GROUPS", "MOST_ROWS", "QueryError", "Row", "UsageQuery", "query_of", "read_rows"]

GROUPS = ("month", "day", "hour", "key", "model")
"""What rows can be grouped by."""

MOST_ROWS = 100_000
"""Most rows of one answer."""

_USUAL_DAYS = 30
_DAY_SECONDS = 86_400
_GROUP_COLUMNS = {
    "month": "strftime('%Y-%m', hour, 'unixepoch')",
    "day": "strftime('%Y-%m-%d', hour, 'unixepoch')",
    "hour": "strftime('%Y-%m-%dT%H:00:00Z', hour, 'unixepoch')",
    "key": "key",
    "model": "model",
}


class QueryError(Exception):
    """A part of a query is invalid; the text begins with the name of the part."""


class UsageQuery(NamedTuple):
    """A query.

    Attributes:
        begins_at, ends_at: seconds since the epoch, at the turn of an hour; the end is excluded.
        by: of ``GROUPS``; without any, there is one row.
        key, model: only rows of this key or model; ``None`` for all.
    """

    begins_at: int
    ends_at: int
    by: tuple[str, ...]
    key: str | None = None
    model: str | None = None


class Row(NamedTuple):
    """One row of an answer: the values of the groups, in the order of the query, and the sums."""

    groups: tuple[str, ...]
    counts: Counts


def query_of(parts: Mapping[str, str | None], now: float) -> UsageQuery:
    """The query that a person has written.

    Args:
        parts: ``from`` and ``to`` (dates, or times; without either, the last 30 days), ``by`` (names of groups,
            separated by commas), ``key`` and ``model``; ``None`` for a part that is not given.
        now: seconds since the epoch.

    Raises:
        QueryError: a part is invalid.
    """
    given = {name: text.strip() for name, text in parts.items() if text is not None and text.strip()}
    begins_at = day_of(now) - (_USUAL_DAYS - 1) * _DAY_SECONDS
    ends_at = hour_of(now) + HOUR_SECONDS
    if "from" in given:
        begins_at = hour_of(_time_of("from", given["from"]))
    if "to" in given:
        ends_at = -hour_of(-_time_of("to", given["to"], is_end=True))
    if begins_at >= ends_at:
        raise QueryError("from: must be before 'to'" if "to" in given else "from: must not be in the future")
    by = tuple(dict.fromkeys(name.strip() for name in given.get("by", "").split(",") if name.strip()))
    for name in by:
        if name not in GROUPS:
            raise QueryError(f"by: {name[:40]!r} is none of {', '.join(GROUPS)}")
    return UsageQuery(begins_at, ends_at, by, given.get("key"), given.get("model"))


def read_rows(path: Path, query: UsageQuery, most: int = MOST_ROWS) -> Sequence[Row]:
    """The rows that ``query`` asks for, ordered by their groups. Blocks.

    Raises:
        QueryError: there are more than ``most``.
        NotALedgerError, sqlite3.Error: the file cannot be read.
    """
    columns = [*(_GROUP_COLUMNS[name] for name in query.by), *(f"sum({name})" for name in COUNTS)]
    conditions = ["hour >= :begins_at", "hour < :ends_at"]
    conditions += [f"{name} = :{name}" for name in ("key", "model") if getattr(query, name) is not None]
    places = ", ".join(str(number + 1) for number in range(len(query.by)))
    grouping = f"GROUP BY {places} ORDER BY {places}" if places else ""
    with closing(open_ledger(path, is_read_only=True)) as connection:
        found = connection.execute(
            f"SELECT {', '.join(columns)} FROM usage WHERE {' AND '.join(conditions)} {grouping} "  # noqa: S608
            f"LIMIT {most + 1}",
            {name: value for name, value in query._asdict().items() if name != "by"},
        ).fetchall()
    if len(found) > most:
        raise QueryError(f"by: there are more than {most} rows; ask for a shorter time, or for fewer groups")
    width = len(query.by)
    # Without groups, SQL returns a row of nulls for no rows.
    return [Row(tuple(values[:width]), Counts(*values[width:])) for values in found if values[width] is not None]


def _time_of(name: str, text: str, *, is_end: bool = False) -> int:
    """Seconds since the epoch; a date alone means its beginning, or, of an end, the end of the day."""
    try:
        if len(text) == len("2027-01-31"):
            begins = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC).timestamp()
            return next_day(begins) if is_end else int(begins)
        found = datetime.fromisoformat(text)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        message = f"{name}: must be a date like 2027-01-31, or a time like 2027-01-31T12:00:00Z (UTC)"
        raise QueryError(message) from None
