"""Queries of the ledger: times, groups, filters, and their formats."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inference_engine_proxy_server.usage.counts import COUNTS, Counts, Place
from inference_engine_proxy_server.usage.ledger_file import LedgerFile
from inference_engine_proxy_server.usage.periods import hour_of
from inference_engine_proxy_server.usage.query import QueryError, Row, UsageQuery, query_of, read_rows
from inference_engine_proxy_server.usage.report import as_csv, as_json, as_table


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


NOW = at("2026-11-29 12:30")
PLACES = [
    Place(at("2026-10-31 23:00"), "a", "m"),
    Place(at("2026-11-01 00:00"), "a", "m"),
    Place(at("2026-11-28 10:00"), "a", 'x "y", z'),
    Place(at("2026-11-29 11:00"), "b", "m"),
    Place(at("2026-11-29 12:00"), "", "m"),
    Place(at("2026-11-29 12:00"), "a", "m"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    file = LedgerFile(path)
    file.add({place: Counts(2**number, 0, 0, 1000, 1, 1, 0, 0.5) for number, place in enumerate(PLACES)}, NOW)
    file.close()
    return path


def requests(path: Path, **parts: str) -> dict[tuple[str, ...], int]:
    rows = read_rows(path, query_of({name.removesuffix("_"): text for name, text in parts.items()}, NOW))
    return {row.groups: row.counts.requests for row in rows}


def test_the_last_30_days_are_the_default(path: Path) -> None:
    query = query_of({}, NOW)
    assert (query.begins_at, query.ends_at) == (at("2026-10-31"), at("2026-11-29 13:00"))
    assert requests(path) == {(): 63}


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ({"by": "month"}, {("2026-10",): 1, ("2026-11",): 62}),
        ({"by": "day"}, {("2026-10-31",): 1, ("2026-11-01",): 2, ("2026-11-28",): 4, ("2026-11-29",): 56}),
        ({"by": "hour", "from_": "2026-11-29"}, {("2026-11-29T11:00:00Z",): 8, ("2026-11-29T12:00:00Z",): 48}),
        ({"by": "key"}, {("",): 16, ("a",): 39, ("b",): 8}),
        ({"by": " model , key ", "key": "a"}, {("m", "a"): 35, ('x "y", z', "a"): 4}),
        ({"model": 'x "y", z'}, {(): 4}),
        ({"key": "a' OR 1 --"}, {}),
        ({"from_": "2026-11-01", "to": "2026-11-28"}, {(): 6}),
        ({"from_": "2026-11-28T10:59:59Z", "to": "2026-11-28T11:00"}, {(): 4}),
        ({"to": "2026-11-29T11:00:01+00:00"}, {(): 15}),
        ({"from_": "2026-11-29T13:30+02:00", "to": "2026-11-29T12:00"}, {(): 8}),
        ({"from_": "2000-01-01", "to": "2000-01-02"}, {}),
    ],
)
def test_rows_are_filtered_and_grouped(path: Path, parts: dict[str, str], found: dict[tuple[str, ...], int]) -> None:
    assert requests(path, **parts) == found


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"by": "dya"}, "by: 'dya' is none of month, day, hour, key, model"),
        ({"from": "yesterday"}, "from: must be a date like 2027-01-31, or a time like 2027-01-31T12:00:00Z (UTC)"),
        ({"to": "2026-02-30"}, "to: must be a date like 2027-01-31, or a time like 2027-01-31T12:00:00Z (UTC)"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "from: must be before 'to'"),
        ({"from": "2027-01-01"}, "from: must not be in the future"),
    ],
)
def test_a_mistake_is_named(parts: dict[str, str], problem: str) -> None:
    with pytest.raises(QueryError) as caught:
        query_of(parts, NOW)
    assert str(caught.value) == problem


def test_too_many_rows_are_refused(path: Path) -> None:
    assert len(read_rows(path, query_of({"by": "key"}, NOW), 3)) == 3
    with pytest.raises(QueryError, match="more than 3 rows; ask for a shorter time, or for fewer groups"):
        read_rows(path, query_of({"by": "day"}, NOW), 3)


def test_json_has_rows_and_their_total(path: Path) -> None:
    query = query_of({"by": "key,model"}, NOW)
    report = json.loads(as_json(query, read_rows(path, query), {"key": "a"}))
    assert report["rows"][0] == {"key": None, "model": "m"} | dict.fromkeys(COUNTS, 0) | {
        "requests": 16, "input_tokens": 1000, "cached_tokens": 1, "output_tokens": 1, "seconds": 0.5
    }  # fmt: skip
    assert (report["total"]["requests"], report["total"]["input_tokens"], report["key"]) == (63, 6000, "a")
    assert (report["from"], report["to"]) == ("2026-10-31T00:00:00Z", "2026-11-29T13:00:00Z")
    assert report["by"] == ["key", "model"]


def test_csv_survives_any_name(path: Path) -> None:
    query = query_of({"by": "day,key,model"}, NOW)
    rows = list(csv.DictReader(io.StringIO(as_csv(query, read_rows(path, query)))))
    assert list(rows[0]) == ["day", "key", "model", *COUNTS]
    assert {(row["key"], row["model"]) for row in rows} == {(place.key, place.model) for place in PLACES}
    assert sum(int(row["requests"]) for row in rows) == 63


def test_the_table_is_aligned_and_ends_with_the_total(path: Path) -> None:
    query = query_of({"by": "day,key"}, NOW)
    lines = as_table(query, read_rows(path, query)).splitlines()
    assert lines[0].split() == ["day", "key", *COUNTS]
    assert lines[-1].split() == ["total", "63", "0", "0", "6,000", "6", "6", "0", "3.0"]
    assert "2026-11-29  -  " in lines[4]
    assert len({len(line) for line in lines}) == 1


def test_a_table_without_groups_has_one_line_of_numbers() -> None:
    query = UsageQuery(hour_of(NOW), hour_of(NOW) + 3600, ())
    assert len(as_table(query, [Row((), Counts(1))]).splitlines()) == 2
