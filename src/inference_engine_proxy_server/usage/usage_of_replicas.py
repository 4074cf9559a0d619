"""The usage of several replicas: what each of them answers to a query of another one, and the sums.

Replicas on one machine may have the same file, whose rows count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from inference_engine_proxy_server.usage.counts import Counts
from inference_engine_proxy_server.usage.ledger_file import identity_of
from inference_engine_proxy_server.usage.query import MOST_ROWS, Row, UsageQuery, read_rows

__all__ = ["LedgerRows", "as_answer", "from_answer", "read_ledger", "summed"]


class LedgerRows(NamedTuple):
    """The rows that one ledger has for a query.

    Attributes:
        ledger: identifies the file, see :func:`~.ledger_file.identity_of`; empty if a replica has none.
        rows: in any order.
    """

    ledger: str
    rows: Sequence[Row]


def read_ledger(path: Path, query: UsageQuery, most: int = MOST_ROWS) -> LedgerRows:
    """The rows of the ledger at ``path``. Blocks; raises what :func:`read_rows` and :func:`identity_of` raise."""
    return LedgerRows(identity_of(path), read_rows(path, query, most))


def as_answer(found: LedgerRows) -> dict[str, Any]:
    """``found`` as JSON can have it."""
    return {"ledger": found.ledger, "rows": [[groups, msgspec.structs.asdict(counts)] for groups, counts in found.rows]}


def from_answer(answer: object, query: UsageQuery) -> LedgerRows | None:
    """What :func:`as_answer` returned, for ``query``; ``None`` if it is something else, as of another version."""
    try:
        found = msgspec.convert(answer, _Answer)
    except msgspec.ValidationError:
        return None
    if any(len(groups) != len(query.by) for groups, _ in found.rows):
        return None
    return LedgerRows(found.ledger, [Row(groups, counts) for groups, counts in found.rows])


def summed(parts: Iterable[LedgerRows]) -> Sequence[Row]:
    """The sums of the rows with the same groups, ordered by these; each ledger counts once."""
    sums: dict[tuple[str, ...], Counts] = {}
    for part in {part.ledger: part for part in parts}.values():
        for groups, counts in part.rows:
            sums.setdefault(groups, Counts()).add(counts)
    return [Row(groups, counts) for groups, counts in sorted(sums.items(), key=lambda item: item[0])]


class _Answer(msgspec.Struct):
    ledger: str
    rows: list[tuple[tuple[str, ...], Counts]]
