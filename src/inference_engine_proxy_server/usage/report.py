"""Rows of the ledger for people and programs: JSON, CSV, and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from inference_engine_proxy_server.usage.counts import COUNTS, Counts
from inference_engine_proxy_server.usage.query import Row, UsageQuery

__all__ = ["as_csv", "as_json", "as_table"]

_UNKNOWN = "-"  # in the table: no key, or no known model


def as_json(query: UsageQuery, rows: Sequence[Row], more: Mapping[str, Any]) -> bytes:
    """One JSON object: the query, the rows, and their total. A row without a key, or a known model, has ``null``.

    Args:
        query: that the rows answer.
        rows: the answer.
        more: further members.
    """
    report = {
        "object": "usage",
        "from": _utc(query.begins_at),
        "to": _utc(query.ends_at),
        "by": query.by,
        **more,
        "rows": [
            {name: value or None for name, value in zip(query.by, row.groups, strict=True)} | _numbers(row.counts)
            for row in rows
        ],
        "total": _numbers(_total(rows)),
    }
    return msgspec.json.encode(report)


def as_csv(query: UsageQuery, rows: Sequence[Row]) -> str:
    """One line for the names of the columns, and one for each row, without a total (RFC 4180)."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*query.by, *COUNTS])
    writer.writerows([*row.groups, *_numbers(row.counts).values()] for row in rows)
    return text.getvalue()


def as_table(query: UsageQuery, rows: Sequence[Row]) -> str:
    """Aligned columns, and the total as the last line."""
    width = len(query.by)
    lines = [[*query.by, *COUNTS]]
    lines += [[*(value or _UNKNOWN for value in row.groups), *_cells(row.counts)] for row in rows]
    if width:
        lines.append(["total", *[""] * (width - 1), *_cells(_total(rows))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(size) if number < width else cell.rjust(size)
            for number, (cell, size) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _numbers(counts: Counts) -> dict[str, float]:
    return {**msgspec.structs.asdict(counts), "seconds": round(counts.seconds, 3)}


def _cells(counts: Counts) -> Iterable[str]:
    return [f"{number:,.1f}" if isinstance(number, float) else f"{number:,}" for number in _numbers(counts).values()]


def _total(rows: Iterable[Row]) -> Counts:
    total = Counts()
    for row in rows:
        total.add(row.counts)
    return total


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
