"""The other replicas: their names, what they know of the fleet, and which of them do not answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from inference_engine_proxy_server.state.questions import Questions, replica_of
from inference_engine_proxy_server.state.record_exchange import RecordExchange
from inference_engine_proxy_server.state.records import Record, Records
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError
from inference_engine_proxy_server.usage.query import UsageQuery
from inference_engine_proxy_server.usage.usage_of_replicas import LedgerRows, from_answer

__all__ = ["FLEET", "USAGE", "Neighbours"]

FLEET, USAGE = "fleet", "usage"
"""What other replicas can be asked about."""

T = TypeVar("T")

_FORGOTTEN_SECONDS = 600.0  # after which a replica that ended or was cut off without a word counts no more
_PREFIX = "replica "
_NOBODY_KNOWS = "unknown: the shared state is not available"


class Neighbours:
    """The other replicas.

    Args:
        name: of this replica, for operators.
        state: the shared state.
        records: have the names of all replicas. One that ends properly takes its record back.
        exchange: exchanges them.
        questions: to the others.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        name: str,
        state: SharedState,
        records: Records,
        exchange: RecordExchange,
        questions: Questions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._state = state
        self._records = records
        self._exchange = exchange
        self._questions = questions
        self._clock = clock
        self._own = _PREFIX + questions.replica
        self._missing_since: dict[str, float] = {}

    async def fleets(self) -> tuple[Mapping[str, Mapping[str, Any]], tuple[str, ...]]:
        """The answer of each replica about its fleet, by its name, and the names of the replicas that are silent."""
        return await self._ask(FLEET, None, lambda answer: answer if _is_fleet(answer) else None)

    async def usage(self, query: UsageQuery) -> tuple[Mapping[str, LedgerRows], tuple[str, ...]]:
        """The rows of each replica for ``query``, by its name, and the names of the replicas that are silent."""
        return await self._ask(USAGE, query, lambda answer: from_answer(answer, query))

    async def _ask(
        self, subject: str, argument: object, read: Callable[[Any], T | None]
    ) -> tuple[Mapping[str, T], tuple[str, ...]]:
        """What ``read`` makes of each answer, by the names of replicas. ``None`` means that the replica is silent."""
        if not self._records.has_read:
            return {}, (_NOBODY_KNOWS,)
        names = _distinct(self._names())
        found = await self._questions.ask(subject, names.keys() & self._present(), argument)
        answers = {names[replica]: read_ for replica, answer in found.items() if (read_ := read(answer)) is not None}
        return answers, tuple(sorted(name for name in names.values() if name not in answers))

    def is_silent(self, replica: str) -> bool:
        """Whether a replica has neither been heard of recently nor ended properly."""
        return replica in self._names() and replica not in self._present()

    # --- in one process of the replica

    def join(self) -> None:
        """Tell the others that this replica is there. A replica of the same name that is silent is an earlier one."""
        self._records.subscribe(self._on_change)
        self._records.write(self._own, {"name": self._name})

    def look(self) -> None:
        """Forget replicas that have been silent for long. Call it every second or so."""
        if not self._state.is_available:
            self._missing_since.clear()
            return
        self._records.need(self._own)
        now = self._clock()
        silent = {replica: name for replica, name in self._names().items() if replica not in self._present()}
        self._missing_since = {replica: self._missing_since.get(replica, now) for replica in silent}
        for replica, since in self._missing_since.items():
            if now - since > _FORGOTTEN_SECONDS or silent[replica] == self._name:
                self._records.write(_PREFIX + replica, None)

    async def leave(self) -> None:
        """This process has left. If it was the last one of the replica, the replica ends."""
        try:
            key = self._state.key("members")
            members = await self._state.call(lambda: self._state.client.zrange(key, 0, -1))
            present = {replica_of(member.decode()) for member in members if isinstance(member, bytes)}
            if self._questions.replica not in present:
                self._records.write(self._own, None)
                await self._exchange.exchange()
        except StateUnavailableError:
            return  # it will count as silent

    def _names(self) -> dict[str, str]:
        """The names of the other replicas."""
        return {
            name.removeprefix(_PREFIX): str(record.value["name"])
            for name, record in self._records.named(_PREFIX)
            if isinstance(record.value, dict) and "name" in record.value and name != self._own
        }

    def _present(self) -> set[str]:
        return {replica_of(member) for member in self._state.members}

    def _on_change(self, name: str, record: Record) -> None:
        if name == self._own and record.value is None:  # it was cut off for long
            self._records.write(name, {"name": self._name})


def _distinct(names: Mapping[str, str]) -> Mapping[str, str]:
    """``names`` by replica; replicas with one name get a part of their identity in addition."""
    counts = Counter(names.values())
    return {replica: name if counts[name] == 1 else f"{name} ({replica[:6]})" for replica, name in names.items()}


def _is_fleet(answer: object) -> bool:
    """Whether an answer has what is needed; a replica of another version may answer something else."""
    return isinstance(answer, dict) and answer.keys() >= {"backends", "draining", "requests"}
