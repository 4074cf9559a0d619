"""Backends that join or leave one replica, by the admin API or an announcement, join or leave all of them.

Leases are shared, too: it is enough that an announcer reaches one replica. While renewals may be on their way that this
replica cannot hear of, no lease ends here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from inference_engine_proxy_server.config.added_backends import (
    AnnouncedEntry,
    DescriptionError,
    JoiningEntry,
    described_backend,
)
from inference_engine_proxy_server.config.base_urls import server_of
from inference_engine_proxy_server.processes.roster import Command, Entry, Roster
from inference_engine_proxy_server.state.records import Record, Records

__all__ = ["ADDED", "JoinedAtReplicas", "SharedRoster"]

ADDED = "added "
"""With this, the name of a record about a backend of operators begins."""

_LEASE = "lease "
_RENEWED_SHARE = 0.8  # of a lease, that must have been left at least, for a renewal not to be sent
_LONGEST_LEASE_SECONDS = 3600.0
_LATE_SECONDS = 0.5  # by which a lease may end too early here, because of the way of the message
_HELD_SECONDS = 10.0  # for which a lease is prolonged at a time
_RETURN_SECONDS = 15.0  # for other replicas to return as well, and tell of renewals
_LONGEST_HOLD_SECONDS = 3600.0

logger = logging.getLogger(__name__)


def _text_of(url: str) -> str:
    scheme, host, port, path = server_of(url)
    return f"{scheme}://{host}:{port}{path}"


class SharedRoster:
    """Tells the other replicas of the changes that this process received.

    Args:
        records: the records of all replicas.
        replica: this one.
        clock: that of leases.
    """

    def __init__(self, records: Records, replica: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._replica = replica
        self._clock = clock

    def change(self, command: Command) -> None:
        """The roster of this replica is changed by ``command``."""
        content: dict[str, Any] = json.loads(command)
        match content:
            case {"do": "add", "entry": entry}:
                self._records.write(ADDED + _text_of(entry["url"]), {"entry": entry})
            case {"do": "remove", "url": url}:
                self._records.write(ADDED + _text_of(url), None)
                for name, record in self._records.named(f"{_LEASE}{_text_of(url)} "):
                    if record.value is not None:
                        self._records.write(name, None)
            case {"do": "announce", "entry": entry, "announcer": announcer, "ends_at": ends_at}:
                self._renew(f"{_LEASE}{_text_of(entry['url'])} {announcer}", entry, ends_at - self._clock())
            case {"do": "withdraw", "url": url, "announcer": announcer}:
                self._records.write(f"{_LEASE}{_text_of(url)} {announcer}", None)

    def _renew(self, name: str, entry: Entry, seconds: float) -> None:
        known, now = self._records.get(name), self._records.now()
        lease = known.value if known is not None and isinstance(known.value, dict) else {}
        if lease.get("entry") != entry or lease["ends_at"] - now < _RENEWED_SHARE * seconds:
            self._records.write(name, {"entry": entry, "ends_at": now + seconds, "by": self._replica})


class Server(Protocol):
    """The server of the shared state."""

    @property
    def is_available(self) -> bool:
        """Whether it answered last time."""


class JoinedAtReplicas:
    """Changes the roster of this replica as others have changed theirs. One process of the replica needs it.

    Args:
        server: of the shared state.
        records: the records of all replicas.
        is_silent: whether another replica has ended or been cut off without a word.
        roster: of this replica.
        change_roster: sends a change to all processes of this replica.
        clock: that of leases.
    """

    def __init__(
        self,
        server: Server,
        records: Records,
        is_silent: Callable[[str], bool],
        roster: Roster,
        change_roster: Callable[[Command], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._records = records
        self._is_silent = is_silent
        self._roster = roster
        self._change_roster = change_roster
        self._clock = clock
        self._available_at = self._away_until = clock()
        self._has_sent_own = False
        records.subscribe(self._on_change)

    def look(self) -> None:
        """Tell of the backends of the file, and hold leases whose renewals may not arrive. Call it every second."""
        if self._records.has_read and not self._has_sent_own:
            self._has_sent_own = True
            for entry in self._roster.added.values():  # unless a replica has ever added, changed or removed it
                self._records.write(ADDED + _text_of(entry["url"]), {"entry": entry}, at=0.0)
        for entry in self._roster.added.values():
            self._records.need(ADDED + _text_of(entry["url"]))
        now = self._clock()
        if self._server.is_available:
            self._available_at = now
        else:
            self._away_until = now
        holds_all = self._holds_all(now)
        for server, one in list(self._roster.announced.items()):
            for announcer, ends_at in one.leases.items():
                if ends_at < now + _HELD_SECONDS / 2 and (holds_all or self._is_cut_off(server, announcer)):
                    self._change_roster(Roster.announcing(one.entry, announcer, now + _HELD_SECONDS))

    def _holds_all(self, now: float) -> bool:
        """Whether other replicas may have received renewals that this one does not know yet."""
        if not self._server.is_available:
            return now - self._available_at < _LONGEST_HOLD_SECONDS
        return now - self._away_until < _RETURN_SECONDS

    def _is_cut_off(self, server: tuple[str, str, int, str], announcer: str) -> bool:
        """Whether the replica that renewed a lease last is silent: it may be cut off, and still get renewals."""
        scheme, host, port, path = server
        record = self._records.get(f"{_LEASE}{scheme}://{host}:{port}{path} {announcer}")
        return record is not None and record.value is not None and self._is_silent(str(record.value.get("by")))

    def _on_change(self, name: str, record: Record) -> None:
        try:
            if name.startswith(ADDED):
                self._follow_added(name.removeprefix(ADDED), record.value)
            elif name.startswith(_LEASE):
                server, _, announcer = name.removeprefix(_LEASE).partition(" ")
                self._follow_lease(server, announcer, record.value)
        except (DescriptionError, ValueError, TypeError, KeyError) as error:
            logger.error("shared state: the record %r describes no backend that can be used: %s", name[:200], error)

    def _follow_added(self, server: str, value: Any) -> None:
        known = self._roster.added.get(server_of(server))
        if value is None:
            if known is not None:
                self._change_roster(Roster.discarding(known["url"]))
        elif value["entry"] != known:
            described_backend(value["entry"], JoiningEntry)
            self._change_roster(Roster.adding(value["entry"]))

    def _follow_lease(self, server: str, announcer: str, value: Any) -> None:
        known = self._roster.announced.get(server_of(server))
        ends_at = None if known is None else known.leases.get(announcer)
        if value is None:
            if known is not None and ends_at is not None:
                self._change_roster(Roster.withdrawing(known.entry["url"], announcer))
            return
        entry, seconds = value["entry"], min(_LONGEST_LEASE_SECONDS, value["ends_at"] - self._records.now())
        new_end = self._clock() + seconds
        is_known = (
            known is not None and known.entry == entry and ends_at is not None and ends_at > new_end - _LATE_SECONDS
        )
        if seconds > 0 and not is_known:
            described_backend(entry, AnnouncedEntry)
            self._change_roster(Roster.announcing(entry, announcer, new_end))
