"""Records that all members have in common: small, few, and the same everywhere after a moment. No I/O.

Every member has all of them in memory. Of two versions of a record, the later one counts, wherever it was written: so
members that were cut off exchange what they have missed in both directions, and a server that has lost its data gets
them back. Times are those of the server's clock; a member that has not reached it yet uses its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["KEPT_SECONDS", "Record", "Records"]

KEPT_SECONDS = 7 * 86_400.0
"""After no member has needed a lasting record for so long, it is forgotten."""

_LEAST_STEP_SECONDS = 0.001  # between two versions, so that a member's command is later than what it has seen
_NEEDED_SECONDS = 3600.0  # after which a record that is needed says so again
_USUALLY_KEPT_SECONDS = 2 * _NEEDED_SECONDS

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """One version of a record.

    Attributes:
        at: when it was written, in seconds since the epoch.
        needed_at: when a member last said that it needs it.
        value: JSON; ``None`` if what it said is no longer so.
    """

    at: float
    needed_at: float
    value: Any

    @property
    def version(self) -> tuple[float, float]:
        """Of two versions, the greater one counts."""
        return self.at, self.needed_at


class Records:
    """All records, as this member knows them.

    Args:
        clock: seconds since the epoch.
        is_lasting: whether a record, by its name and value, is still worth something after hours in which no member
            needs it.

    Attributes:
        has_read: whether the records of the others have been read at least once.
        unsent: set when there is something that others lack.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        is_lasting: Callable[[str, Any], bool] = lambda _name, _value: False,
    ) -> None:
        self.has_read = False
        self._is_lasting = is_lasting
        self.unsent = asyncio.Event()
        self._clock = clock
        self._ahead_seconds = 0.0  # of the server's clock
        self._records: dict[str, Record] = {}
        self._unsent: set[str] = set()
        self._on_change: list[Callable[[str, Record], None]] = []

    def __repr__(self) -> str:
        return f"<Records, {len(self._records)}, {len(self._unsent)} to be sent>"

    def subscribe(self, on_change: Callable[[str, Record], None]) -> None:
        """Call ``on_change`` with the name and the new version of each record that another member has changed."""
        self._on_change.append(on_change)

    def now(self) -> float:
        """The time by the server's clock, in seconds since the epoch."""
        return self._clock() + self._ahead_seconds

    def set_clock(self, now: float) -> None:
        """The server's clock shows ``now``."""
        self._ahead_seconds = now - self._clock()

    def get(self, name: str) -> Record | None:
        """The record; ``None`` if there has never been one."""
        return self._records.get(name)

    def named(self, beginning: str) -> Iterator[tuple[str, Record]]:
        """The names and the records whose names begin so."""
        return ((name, record) for name, record in list(self._records.items()) if name.startswith(beginning))

    def write(self, name: str, value: Any, at: float | None = None) -> None:
        """Change a record: at once for this member, and for all others as soon as the server can be reached.

        Args:
            name: of the record.
            value: JSON.
            at: when this became so; ``None`` for now, 0 for something that anything else replaces.
        """
        known, now = self._records.get(name), self.now()
        if at is None:
            at = now if known is None else max(now, known.at + _LEAST_STEP_SECONDS)
        if known is None or at > known.at:
            self._keep(name, Record(at, now, value))

    def need(self, name: str) -> None:
        """Say now and then that a record is needed, so that it is not forgotten."""
        known, now = self._records.get(name), self.now()
        if known is not None and now - known.needed_at > _NEEDED_SECONDS:
            self._keep(name, known._replace(needed_at=now))

    # --- the exchange with others

    def to_send(self, most: int) -> Mapping[str, Record]:
        """Up to ``most`` records that others lack."""
        self.unsent.clear()
        return {name: self._records[name] for name in list(self._unsent)[:most]}

    def sent(self, sent: Mapping[str, Record]) -> None:
        """The others have these versions now."""
        self._unsent -= {name for name, record in sent.items() if self._records.get(name) == record}

    def merge(self, others: Iterable[tuple[str, str]], *, are_all: bool = False) -> None:
        """Adopt what is later, and note what is earlier, so that it is replaced.

        Args:
            others: names and records, each as :meth:`text_of` returns it.
            are_all: whether the server has no others.
        """
        changed, names = [], set()
        for name, text in others:
            names.add(name)
            record, known = _as_record(text), self._records.get(name)
            if record is None:
                logger.warning("shared state: the record %r cannot be read", name[:100])
            elif known is None or record.version > known.version:
                self._records[name] = record
                self._unsent.discard(name)
                if known is None or (record.at, record.value) != (known.at, known.value):
                    changed.append((name, record))
            elif record.version < known.version:
                self._mark_unsent({name})
        if are_all:
            self._mark_unsent(self._records.keys() - names)
        for name, record in changed:
            for on_change in self._on_change:
                on_change(name, record)

    def forget_old(self) -> Collection[str]:
        """Forget the records that no member has needed for long; returns their names."""
        now = self.now()
        old = [name for name, one in self._records.items() if now - max(one.version) > self._kept_seconds(name, one)]
        for name in old:
            del self._records[name]
        self._unsent.difference_update(old)
        return old

    @staticmethod
    def text_of(record: Record) -> str:
        """A record as JSON."""
        return json.dumps(record)

    def _kept_seconds(self, name: str, record: Record) -> float:
        return KEPT_SECONDS if self._is_lasting(name, record.value) else _USUALLY_KEPT_SECONDS

    def _keep(self, name: str, record: Record) -> None:
        self._records[name] = record
        self._mark_unsent({name})

    def _mark_unsent(self, names: Collection[str]) -> None:
        if names:
            self._unsent.update(names)
            self.unsent.set()


def _as_record(text: str) -> Record | None:
    try:
        at, needed_at, value = json.loads(text)
        return Record(float(at), float(needed_at), value)
    except (ValueError, TypeError):
        return None
