"""The backends that joined while the proxy runs: added by operators, or announced with a lease.

Each process has a copy. Commands are carried out by one process, the supervisor if there is one, which then sends them
to all others: so every copy sees the same commands in the same order, and a worker that starts later inherits one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from inference_engine_proxy_server.config.base_urls import server_of

__all__ = ["Announcement", "Command", "Entry", "Roster"]

Entry: TypeAlias = Mapping[str, Any]
"""A backend as the fleet file describes it; it is valid, and its ``url`` is normal."""
Command: TypeAlias = str
"""A change of a roster, as text that fits into one message between processes."""
_Server: TypeAlias = tuple[str, str, int, str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Announcement:
    """A backend that stays in the fleet while it has a lease.

    Attributes:
        entry: of the latest announcement.
        leases: when the lease of each announcer ends, by ``time.monotonic``, which all processes of a machine share.
    """

    entry: Entry
    leases: Mapping[str, float]

    @property
    def ends_at(self) -> float:
        """When the last lease ends."""
        return max(self.leases.values())


class Roster:
    """One copy.

    Args:
        added: backends that operators have added.
        save: writes these; ``None`` if another process does, or none. Raises ``OSError``.

    Attributes:
        added: backends that operators have added, by server.
        announced: backends that have a lease, by server.
        save_problem: why the last change of ``added`` was not saved; empty if it was, or need not be.
    """

    def __init__(self, added: Iterable[Entry] = (), save: Callable[[Sequence[Entry]], None] | None = None) -> None:
        self.added: dict[_Server, Entry] = {server_of(entry["url"]): entry for entry in added}
        self.announced: dict[_Server, Announcement] = {}
        self.save_problem = ""
        self._save = save
        self._on_change: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"<Roster of {len(self.added)} added and {len(self.announced)} announced backends>"

    def copy(self) -> Roster:
        """A copy that saves nothing, and that nobody subscribes to yet."""
        copied = Roster(self.added.values())
        copied.announced = dict(self.announced)
        copied.save_problem = self.save_problem
        return copied

    def as_object(self) -> dict[str, object]:
        """All backends and leases, as JSON has them, for a program that replaces this one."""
        announced = [{"entry": one.entry, "leases": one.leases} for one in self.announced.values()]
        return {"added": list(self.added.values()), "announced": announced}

    def adopt(self, content: Mapping[str, Any]) -> None:
        """Adopt the backends and leases of the program that this one replaces."""
        self.added = {server_of(entry["url"]): entry for entry in content["added"]}
        self.announced = {
            server_of(one["entry"]["url"]): Announcement(one["entry"], one["leases"]) for one in content["announced"]
        }

    def stop_saving(self) -> None:
        """Leave the saving to another process from now on."""
        self._save = None

    def subscribe(self, on_change: Callable[[], object]) -> None:
        """Call ``on_change`` after each change, and after each renewal of a lease."""
        self._on_change.append(on_change)

    # --- commands

    @staticmethod
    def adding(entry: Entry) -> Command:
        """The command to add a backend, or to change one that was added."""
        return json.dumps({"do": "add", "entry": entry})

    @staticmethod
    def removing(url: str) -> Command:
        """The command to remove a backend, whether it was added or announced."""
        return json.dumps({"do": "remove", "url": url})

    @staticmethod
    def discarding(url: str) -> Command:
        """The command to remove a backend that was added; it stays if it is announced, too."""
        return json.dumps({"do": "discard", "url": url})

    @staticmethod
    def announcing(entry: Entry, announcer: str, ends_at: float) -> Command:
        """The command to add a backend until ``ends_at``, or to renew its lease."""
        return json.dumps({"do": "announce", "entry": entry, "announcer": announcer, "ends_at": ends_at})

    @staticmethod
    def withdrawing(url: str, announcer: str) -> Command:
        """The command to end the lease of one announcer."""
        return json.dumps({"do": "withdraw", "url": url, "announcer": announcer})

    def carry_out(self, command: Command) -> str:
        """Carry out a command, and save what operators have added. Returns what other copies :meth:`follow`."""
        content = json.loads(command)
        added_before = dict(self.added)
        self._change(content)
        if self._save is not None and self.added != added_before:
            try:
                self._save(list(self.added.values()))
                self.save_problem = ""
            except OSError as error:
                self.save_problem = error.strerror or str(error)
                logger.error("the backends that operators have added cannot be saved: %s", self.save_problem)
        self._tell()
        return json.dumps({"command": content, "save_problem": self.save_problem})

    def follow(self, carried_out: str) -> None:
        """Repeat a command that another process has carried out."""
        content = json.loads(carried_out)
        self.save_problem = content["save_problem"]
        self._change(content["command"])
        self._tell()

    def _change(self, command: Mapping[str, Any]) -> None:
        match command:
            case {"do": "add", "entry": entry}:
                self.added[server_of(entry["url"])] = entry
            case {"do": "discard", "url": url}:
                self.added.pop(server_of(url), None)
            case {"do": "remove", "url": url}:
                self.added.pop(server_of(url), None)
                self.announced.pop(server_of(url), None)
            case {"do": "announce", "entry": entry, "announcer": announcer, "ends_at": ends_at}:
                known = self.announced.get(server_of(entry["url"]))
                leases = {} if known is None else known.leases
                self.announced[server_of(entry["url"])] = Announcement(entry, {**leases, announcer: ends_at})
            case {"do": "withdraw", "url": url, "announcer": announcer}:
                self._keep_leases(server_of(url), lambda name, _: name != announcer)

    # --- leases

    def next_end(self) -> float | None:
        """When the next lease ends; ``None`` if there is none."""
        return min((end for one in self.announced.values() for end in one.leases.values()), default=None)

    def end_leases(self, now: float) -> list[Entry]:
        """Remove the backends whose last lease has ended; returns their entries."""
        before = dict(self.announced)
        for server in before:
            self._keep_leases(server, lambda _, ends_at: ends_at > now)
        return [one.entry for server, one in before.items() if server not in self.announced]

    def prolong_leases(self, seconds: float) -> None:
        """Prolong all leases: renewals could not be received for ``seconds``."""
        for server, one in self.announced.items():
            leases = {announcer: ends_at + seconds for announcer, ends_at in one.leases.items()}
            self.announced[server] = Announcement(one.entry, leases)

    def _keep_leases(self, server: _Server, keeps: Callable[[str, float], bool]) -> None:
        one = self.announced.get(server)
        if one is None:
            return
        leases = {announcer: ends_at for announcer, ends_at in one.leases.items() if keeps(announcer, ends_at)}
        if leases:
            self.announced[server] = Announcement(one.entry, leases)
        else:
            del self.announced[server]

    def _tell(self) -> None:
        for on_change in self._on_change:
            on_change()
