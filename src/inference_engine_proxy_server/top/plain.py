"""A snapshot as plain text, for scripts and for terminals without the extra ``top``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inference_engine_proxy_server.top.view import (
    BACKEND_COLUMNS,
    EVENT_COLUMNS,
    REQUEST_COLUMNS,
    Row,
    backend_rows,
    event_rows,
    header_lines,
    request_rows,
)

__all__ = ["as_text"]

_MOST_REQUESTS = 40
_MOST_EVENTS = 20
_WIDEST = 48  # characters of a cell that is not the last one


def as_text(snapshot: Mapping[str, Any]) -> str:
    """The header, and tables of backends, live requests and events; empty tables are left out."""
    parts = ["\n".join(header_lines(snapshot)), _table(BACKEND_COLUMNS, backend_rows(snapshot))]
    for columns, rows, most in (
        (REQUEST_COLUMNS, request_rows(snapshot), _MOST_REQUESTS),
        (EVENT_COLUMNS, event_rows(snapshot), _MOST_EVENTS),
    ):
        if rows:
            left_out = f"\n... and {len(rows) - most} more" if len(rows) > most else ""
            parts.append(_table(columns, rows[:most]) + left_out)
    return "\n\n".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [[column.upper() for column in columns], *([*row.cells] for row in rows)]
    short = [[_shortened(cell) for cell in line[:-1]] + [line[-1]] for line in lines]
    widths = [max(map(len, column)) for column in zip(*short, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in short
    )


def _shortened(cell: str) -> str:
    return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 3]}..."
