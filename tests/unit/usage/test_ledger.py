"""The ledger writes batches in the background; a file that cannot be written costs log lines and nothing else."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from inference_engine_proxy_server.usage.ledger import Ledger
from inference_engine_proxy_server.usage.ledger_file import LedgerFile
from inference_engine_proxy_server.usage.query import query_of, read_rows
from inference_engine_proxy_server.usage.spending import Spending
from inference_engine_proxy_server.usage.tokens import TokenUse
from support.waiting import eventually

USED = TokenUse(10, 4, 5, is_estimate=False)
GUESSED = TokenUse(3, 0, 2, is_estimate=True)
MODULE = "inference_engine_proxy_server.usage"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.ledger.BATCH_SECONDS", 0.01)
    monkeypatch.setattr(f"{MODULE}.ledger_file._LOCK_SECONDS", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


def ledger_of(path: Path, *, is_shared: bool = False) -> tuple[Ledger, Spending]:
    spending = Spending(time.time)
    return Ledger(LedgerFile(path), spending, is_shared=is_shared), spending


@asynccontextmanager
async def running(ledger: Ledger) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(ledger.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def requests_in(path: Path) -> int:
    try:
        rows = read_rows(path, query_of({}, time.time()))
    except sqlite3.OperationalError:
        return 0
    return sum(row.counts.requests for row in rows)


async def test_counts_are_written_without_being_asked_for(path: Path) -> None:
    ledger, _ = ledger_of(path)
    async with running(ledger):
        ledger.count("a", "m", USED, 0.5, has_failed=False)
        ledger.count("a", "m", GUESSED, 0.25, has_failed=True)
        ledger.count("", "", USED, 1.0, has_failed=False)
        assert ledger.unwritten_requests == 3
        await eventually(lambda: requests_in(path) == 3)
        await eventually(lambda: ledger.unwritten_requests == 0)
    by_key = {row.groups: row.counts for row in read_rows(path, query_of({"by": "key,model"}, time.time()))}
    assert by_key.keys() == {("", ""), ("a", "m")}
    counts = by_key["a", "m"]
    assert (counts.requests, counts.failed_requests, counts.estimated_requests) == (2, 1, 1)
    assert (counts.input_tokens, counts.cached_tokens, counts.output_tokens, counts.estimated_tokens) == (13, 4, 7, 5)
    assert counts.seconds == 0.75


async def test_what_was_counted_last_is_written_at_the_end(path: Path) -> None:
    ledger, _ = ledger_of(path)
    async with running(ledger):
        await asyncio.sleep(0)
        ledger.count("a", "m", USED, 0.5, has_failed=False)
    assert requests_in(path) == 1


async def test_every_request_is_written_once_however_often_the_task_is_cancelled(path: Path) -> None:
    ledger, _ = ledger_of(path)
    for number in range(30):
        async with running(ledger):
            ledger.count("a", "m", USED, 0.5, has_failed=False)
            await asyncio.sleep(0.001 * number)
    assert requests_in(path) == 30


async def test_a_locked_file_costs_one_log_line_and_nothing_is_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ledger, spending = ledger_of(path)
    spent = spending.of("a")
    LedgerFile(path).check()
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with running(ledger):
            for number in range(20):
                ledger.count("a", f"m{number % 3}", USED, 0.5, has_failed=False)
                spent.add(USED.total)
                await asyncio.sleep(0.01)
            assert (ledger.unwritten_requests, spent.today) == (20, 300)
            other.rollback()
            await eventually(lambda: requests_in(path) == 20)
            await eventually(lambda: not ledger.unwritten_requests)
    assert spent.today == spent.this_month == 300
    [trouble, end] = [record.getMessage() for record in caplog.records]
    assert "cannot be written: database is locked" in trouble
    assert end == "usage: the ledger is written again; it lacks 0 requests"


async def test_a_full_disk_costs_one_log_line_and_nothing_is_lost(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite reports a limit on pages as it does a full disk.
    usual = f"{MODULE}.ledger_file.open_ledger"
    from inference_engine_proxy_server.usage import ledger_file

    opened = ledger_file.open_ledger

    def small(path: Path, *, is_read_only: bool = False) -> sqlite3.Connection:
        connection = opened(path, is_read_only=is_read_only)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    caplog.set_level(logging.INFO)
    ledger, _ = ledger_of(path)
    monkeypatch.setattr(usual, small)
    async with running(ledger):
        for number in range(200):
            ledger.count("a", f"{number}{'m' * 500}", USED, 0.5, has_failed=False)
        await eventually(lambda: caplog.records)
        monkeypatch.setattr(usual, opened)
        await eventually(lambda: requests_in(path) == 200)
    assert "database or disk is full" in caplog.records[0].getMessage()


async def test_memory_for_a_file_that_cannot_be_written_is_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.ledger._MOST_ROWS", 5)
    folder = tmp_path / "later"
    ledger, _ = ledger_of(folder / "usage.db")
    async with running(ledger):
        for number in range(8):
            ledger.count("a", str(number), USED, 0.5, has_failed=False)
        await eventually(lambda: caplog.records)
        assert ledger.unwritten_requests == 5
        ledger.count("a", "3", USED, 0.5, has_failed=False)
        folder.mkdir()
        await eventually(lambda: requests_in(folder / "usage.db") == 6)
    assert "it lacks 3 requests" in caplog.records[-1].getMessage()


async def test_workers_learn_of_each_others_tokens(path: Path) -> None:
    (one, its_spending), (other, others_spending) = ledger_of(path, is_shared=True), ledger_of(path, is_shared=True)
    spent, elsewhere = its_spending.of("a"), others_spending.of("a")
    async with running(one), running(other):
        one.count("a", "m", USED, 0.5, has_failed=False)
        spent.add(USED.total)
        await eventually(lambda: elsewhere.today == 15)
        other.count("a", "m", USED, 0.5, has_failed=False)
        elsewhere.add(USED.total)
        await eventually(lambda: (spent.today, spent.this_month) == (30, 30))
        assert elsewhere.today == 30
