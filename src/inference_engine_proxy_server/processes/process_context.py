"""The process of a proxy: a single process, or one of several workers."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.processes.channel import (
    DRAIN,
    JOINED,
    LEFT,
    MOVE,
    READINESS_PROBED,
    ROSTER,
    UNDRAIN,
    Channel,
)
from inference_engine_proxy_server.processes.conversation_memory import ConversationMemory
from inference_engine_proxy_server.processes.roster import Command, Roster
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.processes.siblings import Answers, Siblings
from inference_engine_proxy_server.processes.standing_commands import StandingCommands
from inference_engine_proxy_server.processes.worker_fairness import Fairness, SoleWorker, WorkerFairness

__all__ = ["Loop", "Loops", "ProcessContext", "SoleProcess", "WorkerContext"]

Loop = Callable[[], Coroutine[None, None, None]]
"""An endless background task."""
Loops = Mapping[str, Loop]
"""Background tasks by name."""


class ProcessContext(Protocol):
    """The process that a proxy runs in."""

    @property
    def is_worker(self) -> bool:
        """Whether other workers serve the same port."""

    @property
    def siblings(self) -> Siblings:
        """The other workers."""

    @property
    def service(self) -> str:
        """A random name, the same in all workers, by which the proxy recognizes requests that it sent itself."""

    @property
    def shared_leases(self) -> SharedLeases | None:
        """Lease counts of all workers, by backend; ``None`` when there is only this process."""

    @property
    def conversations(self) -> ConversationMemory:
        """Where the latest conversations of all workers were."""

    @property
    def drained_urls(self) -> frozenset[str]:
        """Base URLs of the backends that operators have drained before this process started."""

    @property
    def roster(self) -> Roster:
        """The backends that joined while the proxy runs."""

    def change_roster(self, command: Command) -> None:
        """Let all workers, including workers started later, carry out a change of the roster."""

    def fairness(self) -> Fairness:
        """Decides whether this worker may fill a free slot."""

    def order(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Send an operator's drain or undrain command to all workers, including workers started later."""

    def announce_readiness_probe(self) -> None:
        """Report a readiness probe to all workers."""

    def announce_backends(self, joined: Iterable[str], left: Iterable[str]) -> None:
        """Report to the supervisor that backends with these base URLs have joined or left the fleet."""

    def loops(self, answers: Answers, fill_slots: Loop) -> Loops:
        """Background tasks that connect this process with its siblings.

        Args:
            answers: to queries of siblings.
            fill_slots: looks for slots that siblings freed.
        """


class SoleProcess:
    """The context of a proxy without siblings.

    Args:
        roster: the backends that operators have added; ``None`` for none.

    Attributes:
        commands: of operators, which are in force.
        pass_on: gets each command, for a program that replaces this one; by default, there is none.
    """

    is_worker = False
    shared_leases = None

    def __init__(self, roster: Roster | None = None) -> None:
        self.commands = StandingCommands(roster)
        self.pass_on: Callable[[str, str], None] = lambda _word, _argument: None
        self.siblings = Siblings()
        self.conversations = ConversationMemory()
        self.service = secrets.token_hex(6)

    @property
    def roster(self) -> Roster:
        """The backends that joined while the proxy runs."""
        return self.commands.roster

    @property
    def drained_urls(self) -> frozenset[str]:
        """Those that a program drained which this one replaces."""
        return frozenset(self.commands.drained_urls)

    def change_roster(self, command: Command) -> None:
        """Carries it out."""
        self._note(ROSTER, command)

    def fairness(self) -> Fairness:
        """Every free slot belongs to this process."""
        return SoleWorker()

    def order(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Notes the command, which has been carried out in this process."""
        self._note(_word_of(is_draining=is_draining, moves=moves), url)

    def announce_readiness_probe(self) -> None:
        """Tells a program that replaces this one; this process knows of the probe."""
        self.pass_on(READINESS_PROBED, "")

    def announce_backends(self, joined: Iterable[str], left: Iterable[str]) -> None:
        """Forgets what was commanded about backends that have left."""
        del joined
        for url in left:
            self.commands.forget(url)

    def loops(self, answers: Answers, fill_slots: Loop) -> Loops:
        """None."""
        del answers, fill_slots
        return {}

    def _note(self, word: str, argument: str) -> None:
        self.commands.carry_out(word, argument)
        self.pass_on(word, argument)


def _word_of(*, is_draining: bool, moves: bool) -> str:
    return MOVE if moves else DRAIN if is_draining else UNDRAIN


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker inherits from its supervisor.

    Attributes:
        configuration: with the fleet at the worker's start.
        listeners: sockets on PORT and, if set, on ADMIN_PORT, from which the worker accepts connections.
        channel: to the supervisor.
        siblings: the other workers.
        inbox: receives queries of siblings.
        service: a random name, the same in all workers.
        shared_leases: lease counts of all workers, by backend.
        conversations: where the latest conversations of all workers were.
        drained_urls: base URLs of the backends that operators have drained.
        roster: the backends that have joined before the worker's start.
        beat_seconds: between two signs of life; ``None`` if nobody watches.
    """

    configuration: Configuration
    listeners: Sequence[Sequence[socket.socket]]
    channel: Channel
    siblings: Siblings
    inbox: socket.socket
    service: str
    shared_leases: SharedLeases
    conversations: ConversationMemory
    drained_urls: frozenset[str]
    roster: Roster
    beat_seconds: float | None = None

    @property
    def is_worker(self) -> bool:
        """Always true."""
        return True

    def fairness(self) -> Fairness:
        """See :class:`ProcessContext`."""
        return WorkerFairness(self.shared_leases, self.siblings.number)

    def order(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Send an operator's drain or undrain command to all workers, including workers started later."""
        self.channel.send(_word_of(is_draining=is_draining, moves=moves), url)

    def change_roster(self, command: Command) -> None:
        """Send a change of the roster to all workers, this one included, and to workers started later."""
        self.channel.send(ROSTER, command)

    def announce_readiness_probe(self) -> None:
        """Report a readiness probe to all workers."""
        self.channel.send(READINESS_PROBED)

    def announce_backends(self, joined: Iterable[str], left: Iterable[str]) -> None:
        """Report to the supervisor that backends with these base URLs have joined or left the fleet."""
        for word, urls in ((JOINED, joined), (LEFT, left)):
            for url in urls:
                self.channel.send(word, url)

    def loops(self, answers: Answers, fill_slots: Loop) -> Loops:
        """Answer queries of siblings, and fill the slots that they free."""
        return {"siblings": partial(self.siblings.answer, self.inbox, answers), "slots of siblings": fill_slots}
