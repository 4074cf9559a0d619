"""The ledger's SQLite file: one row for each hour, key and model.

Several processes may write to it (write-ahead log, one transaction for each batch). Every write adds to what is there.
All methods block, so they run in a thread, or before the event loop starts. The file must be on a local disk, because
SQLite's write-ahead log needs shared memory (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from inference_engine_proxy_server.usage.counts import COUNTS, Counts, Place
from inference_engine_proxy_server.usage.periods import day_of, month_of
from inference_engine_proxy_server.usage.spending import StoredTokens

__all__ = ["FILE_ERRORS", "LedgerFile", "NotALedgerError", "identity_of", "open_ledger"]

FILE_ERRORS = (sqlite3.Error, OSError)
"""What reading and writing may raise: a full disk, a lock that lasts, a damaged file, missing permissions."""

_APPLICATION = 0x4C454447  # "LEDG" in the file's header, so that no other database is taken for a ledger
_VERSION = 1  # of the tables
_LOCK_SECONDS = 2.0  # longest wait for other writers; a batch takes a few milliseconds

_TABLES = f"""\
CREATE TABLE usage (
  hour INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
  {", ".join(f"{name} {'REAL' if name == 'seconds' else 'INTEGER'} NOT NULL" for name in COUNTS)},
  PRIMARY KEY (hour, key, model)
) WITHOUT ROWID;
CREATE TABLE daily_tokens (
  day INTEGER NOT NULL, key TEXT NOT NULL, tokens INTEGER NOT NULL,
  PRIMARY KEY (day, key)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
_ADD = (
    f"INSERT INTO usage VALUES ({', '.join('?' * (3 + len(COUNTS)))}) "  # noqa: S608
    "ON CONFLICT (hour, key, model) DO UPDATE SET " + ", ".join(f"{name} = {name} + excluded.{name}" for name in COUNTS)
)
_ADD_TOKENS = (
    "INSERT INTO daily_tokens VALUES (?, ?, ?) ON CONFLICT (day, key) DO UPDATE SET tokens = tokens + excluded.tokens"
)
_SPENT = (
    "SELECT key, sum(CASE WHEN day = :day THEN tokens ELSE 0 END), sum(tokens) FROM daily_tokens "
    "WHERE day >= :month GROUP BY key"
)


class NotALedgerError(Exception):
    """The file cannot be a ledger; the text says why."""


class LedgerFile:
    """The file, for one writing process.

    Args:
        path: of the file; it is created if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def check(self) -> None:
        """Create the file, or check that it is a ledger.

        Raises:
            NotALedgerError: it is something else, or cannot be created.
            sqlite3.Error: it cannot be used now, but perhaps later.
        """
        folder = self.path.resolve().parent
        if not folder.is_dir():
            raise NotALedgerError(f"there is no folder {str(folder)!r}")
        try:
            with closing(open_ledger(self.path)):
                pass
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise NotALedgerError(f"{error}: are the file and its folder writable?") from error
            raise

    def add(self, batch: Mapping[Place, Counts], now: float) -> StoredTokens:
        """Add ``batch``, as a whole or not at all.

        Returns:
            The sums of the day and the month that have ``now``.

        Raises:
            NotALedgerError, sqlite3.Error, OSError: nothing was added.
        """
        connection = self._open()
        try:
            with connection:
                connection.executemany(_ADD, [(*place, *_values(counts)) for place, counts in batch.items()])
                connection.executemany(_ADD_TOKENS, [(day, key, n) for (day, key), n in _daily(batch).items()])
                return _stored(connection, now)  # before the commit: after it, nothing may fail
        except FILE_ERRORS:
            self.close()
            raise

    def stored(self, now: float) -> StoredTokens:
        """As :meth:`add`, without adding anything."""
        return self.add({}, now)

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and not self._is_same_file():
            self.close()
        if self._connection is None:
            self._connection = open_ledger(self.path)
            self._inode = self.path.stat().st_ino
        return self._connection

    def _is_same_file(self) -> bool:
        """Whether the open file still has its name; SQLite would go on writing to a deleted file."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False


def open_ledger(path: Path, *, is_read_only: bool = False) -> sqlite3.Connection:
    """A connection to the ledger at ``path``; a new file gets its tables, unless it is only read.

    The connection may be used by one thread after another.

    Raises:
        NotALedgerError: the file is another database, is none, or was made by a newer version of this program.
        sqlite3.Error: it cannot be opened now.
    """
    mode = "ro" if is_read_only else "rwc"
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}", timeout=_LOCK_SECONDS, check_same_thread=False, uri=True
    )
    try:
        if not is_read_only:
            _create_tables(connection)
        _check(connection)
        if not is_read_only:
            _identify(connection)
            # After a power failure, the latest batches may be missing, but the file is intact.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise NotALedgerError("it is not a SQLite file") from None
        raise
    except NotALedgerError:
        connection.close()
        raise
    return connection


def identity_of(path: Path) -> str:
    """What distinguishes the ledger at ``path`` from all others, also from a copy of it. Blocks.

    Raises:
        NotALedgerError, sqlite3.Error, OSError: the file cannot be read now.
    """
    with closing(open_ledger(path, is_read_only=True)) as connection:
        (identity,) = connection.execute("SELECT id FROM identity").fetchone()
    return f"{identity}-{path.stat().st_ino}"


def _identify(connection: sqlite3.Connection) -> None:
    """Give the ledger an identity, if it has none. Of several processes that try this at once, one does it."""
    if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'identity'").fetchone()[0]:
        return
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL)")
        connection.execute(
            "INSERT INTO identity SELECT ? WHERE NOT EXISTS (SELECT 1 FROM identity)", (secrets.token_hex(8),)
        )


def _create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables in an empty file. Of several processes that try this at once, one does it."""
    if connection.execute("PRAGMA application_id").fetchone()[0]:
        return
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        is_new = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        for statement in _TABLES.split(";\n") if is_new else ():
            connection.execute(statement)


def _check(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise NotALedgerError("it is a database of another program")
    if version > _VERSION:
        raise NotALedgerError(f"it was made by a newer version of this program (format {version})")


def _values(counts: Counts) -> tuple[float, ...]:
    return tuple(getattr(counts, name) for name in COUNTS)


def _daily(batch: Mapping[Place, Counts]) -> dict[tuple[int, str], int]:
    tokens: dict[tuple[int, str], int] = {}
    for place, counts in batch.items():
        at = day_of(place.hour), place.key
        tokens[at] = tokens.get(at, 0) + counts.input_tokens + counts.output_tokens
    return tokens


def _stored(connection: sqlite3.Connection, now: float) -> StoredTokens:
    day, month = day_of(now), month_of(now)
    rows = connection.execute(_SPENT, {"day": day, "month": month})
    return StoredTokens(day, month, {key: (today, this_month) for key, today, this_month in rows})
