"""The ledger's file: sums, several writers, and files that are no ledger."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inference_engine_proxy_server.usage.counts import Counts, Place
from inference_engine_proxy_server.usage.ledger_file import LedgerFile, NotALedgerError, open_ledger
from inference_engine_proxy_server.usage.periods import day_of, hour_of, month_of
from inference_engine_proxy_server.usage.query import UsageQuery, read_rows

NOW = datetime(2026, 11, 29, 12, 30, tzinfo=UTC).timestamp()
HOUR = hour_of(NOW)
EVERYTHING = UsageQuery(0, HOUR + 3600, ("hour", "key", "model"))
ONE = Counts(1, 0, 0, 10, 4, 5, 0, 0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


def total(path: Path) -> list[Counts]:
    return [row.counts for row in read_rows(path, EVERYTHING._replace(by=()))]


def test_equal_places_are_summed_and_others_have_rows_of_their_own(path: Path) -> None:
    file = LedgerFile(path)
    for _ in range(3):
        file.add({Place(HOUR, "a", "m"): ONE, Place(HOUR, "b", "m"): ONE, Place(HOUR - 3600, "a", "m"): ONE}, NOW)
    file.close()
    rows = read_rows(path, EVERYTHING)
    assert [row.groups for row in rows] == [
        ("2026-11-29T11:00:00Z", "a", "m"), ("2026-11-29T12:00:00Z", "a", "m"), ("2026-11-29T12:00:00Z", "b", "m"),
    ]  # fmt: skip
    assert {repr(row.counts) for row in rows} == {repr(Counts(3, 0, 0, 30, 12, 15, 0, 1.5))}


def test_the_sums_for_budgets_cover_the_day_and_the_month(path: Path) -> None:
    file = LedgerFile(path)
    before = month_of(NOW) - 3600
    sums = file.add(
        {
            Place(HOUR, "a", "m"): ONE,
            Place(HOUR, "a", "other"): ONE,
            Place(day_of(NOW) - 3600, "a", "m"): ONE,
            Place(before, "a", "m"): ONE,
            Place(before, "old", "m"): ONE,
            Place(HOUR, "b", "m"): ONE,
        },
        NOW,
    )
    assert (sums.day, sums.month) == (day_of(NOW), month_of(NOW))
    assert sums.by_key == {"a": (30, 45), "b": (15, 15)}
    assert file.stored(NOW) == sums
    file.close()


def test_several_writers_add_to_each_other(path: Path) -> None:
    def write(number: int) -> None:
        file = LedgerFile(path)
        for _ in range(20):
            file.add({Place(HOUR, f"k{number % 2}", "m"): ONE}, NOW)
        file.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert [counts.requests for counts in total(path)] == [80]


def test_a_batch_is_added_as_a_whole_or_not_at_all(path: Path) -> None:
    file = LedgerFile(path)
    too_large = Counts(requests=2**63)
    with pytest.raises(OverflowError):
        file.add({Place(HOUR, "a", "m"): ONE, Place(HOUR, "b", "m"): too_large}, NOW)
    file.close()
    assert total(path) == []


def test_a_batch_whose_sums_cannot_be_read_is_not_added(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    file = LedgerFile(path)
    with monkeypatch.context() as patched:
        patched.setattr("inference_engine_proxy_server.usage.ledger_file._stored", fail)
        with pytest.raises(sqlite3.OperationalError):
            file.add({Place(HOUR, "a", "m"): ONE}, NOW)
    file.add({Place(HOUR, "a", "m"): ONE}, NOW)
    file.close()
    assert [counts.requests for counts in total(path)] == [1]


def test_a_deleted_file_is_made_again(path: Path) -> None:
    file = LedgerFile(path)
    file.add({Place(HOUR, "a", "m"): ONE}, NOW)
    for one in path.parent.iterdir():
        one.unlink()
    file.add({Place(HOUR, "b", "m"): ONE}, NOW)
    file.close()
    assert [row.groups[1] for row in read_rows(path, EVERYTHING)] == ["b"]


def test_a_locked_file_raises_and_can_be_written_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_engine_proxy_server.usage.ledger_file._LOCK_SECONDS", 0.01)
    file = LedgerFile(path)
    file.check()
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            file.add({Place(HOUR, "a", "m"): ONE}, NOW)
    file.add({Place(HOUR, "a", "m"): ONE}, NOW)
    file.close()
    assert [counts.requests for counts in total(path)] == [1]


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE accounts (name TEXT)")


def newer_ledger(path: Path) -> None:
    with closing(open_ledger(path)) as made, made:
        made.execute("PRAGMA user_version = 2")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("keys: []\n" * 100), "not a SQLite file"),
        (other_database, "a database of another program"),
        (newer_ledger, "a newer version of this program"),
        (lambda path: path.mkdir(), "unable to open database file"),
    ],
)
def test_another_file_is_refused_and_not_changed(path: Path, make: object, reason: str) -> None:
    assert callable(make)
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(NotALedgerError, match=reason):
        LedgerFile(path).check()
    assert not path.is_file() or path.read_bytes() == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotALedgerError, match=r"there is no folder .*missing"):
        LedgerFile(tmp_path / "missing" / "usage.db").check()


def test_a_missing_file_is_not_made_by_reading(path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        read_rows(path, EVERYTHING)
    assert not path.exists()
