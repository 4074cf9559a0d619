"""The usage of several replicas: answers, and their sums."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inference_engine_proxy_server.usage.counts import Counts, Place
from inference_engine_proxy_server.usage.ledger_file import LedgerFile, identity_of
from inference_engine_proxy_server.usage.query import QueryError, Row, UsageQuery
from inference_engine_proxy_server.usage.usage_of_replicas import (
    LedgerRows,
    as_answer,
    from_answer,
    read_ledger,
    summed,
)

QUERY = UsageQuery(0, 10_000_000, ("key", "model"))
ROWS = [Row(("a", "m"), Counts(1, 0, 0, 10, 2, 5, 0, 0.5)), Row(("b", "m"), Counts(2, 1, 0, 20, 0, 6, 0, 1.5))]


def ledger(path: Path, **requests_of: int) -> Path:
    file = LedgerFile(path)
    file.add({Place(3600, key, "m"): Counts(number) for key, number in requests_of.items()}, 3600)
    file.close()
    return path


def test_rows_with_the_same_groups_are_summed_and_ordered() -> None:
    other = LedgerRows("two", [Row(("b", "m"), Counts(3, 0, 1, 30, 3, 7, 37, 2.0)), Row(("a", "l"), Counts(1))])
    assert summed([LedgerRows("one", ROWS), other]) == [
        Row(("a", "l"), Counts(1)),
        ROWS[0],
        Row(("b", "m"), Counts(5, 1, 1, 50, 3, 13, 37, 3.5)),
    ]


def test_a_ledger_of_several_replicas_counts_once(tmp_path: Path) -> None:
    path = ledger(tmp_path / "usage.db", a=3)
    parts = [read_ledger(path, QUERY), read_ledger(path, QUERY), LedgerRows("", ())]
    assert summed(parts) == [Row(("a", "m"), Counts(3))]


def test_an_identity_stays_and_a_copy_has_another_one(tmp_path: Path) -> None:
    path = ledger(tmp_path / "usage.db", a=1)
    known = identity_of(path)
    ledger(path, a=1)
    copied = Path(shutil.copy(path, tmp_path / "copy.db"))
    assert identity_of(path) == known != identity_of(copied)


def test_an_answer_is_read_as_it_was_sent() -> None:
    sent = msgspec.json.decode(msgspec.json.encode(as_answer(LedgerRows("one", ROWS))))
    assert from_answer(sent, QUERY) == LedgerRows("one", ROWS)


@pytest.mark.parametrize("answer", [None, {}, {"ledger": 1, "rows": []}, {"ledger": "one", "rows": [[["a"], {}]]}])
def test_what_is_no_answer_to_the_query_is_none(answer: Any) -> None:
    assert from_answer(answer, QUERY) is None


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    path = ledger(tmp_path / "usage.db", a=1, b=1)
    assert len(read_ledger(path, QUERY, 2).rows) == 2
    with pytest.raises(QueryError, match="more than 1 rows"):
        read_ledger(path, QUERY, 1)
