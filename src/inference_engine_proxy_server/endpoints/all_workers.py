"""Operators' queries and commands for all workers. Each reaches only one worker, which involves the others.

A process without siblings answers alone. With shared state, what concerns backends involves all replicas.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.departures import Departures
from inference_engine_proxy_server.processes.siblings import Answers, Siblings
from inference_engine_proxy_server.routing.decisions import Decisions

__all__ = ["AllWorkers", "Order", "Replicas", "SiblingAnswers"]

_FLEET, _KEYS, _DECISIONS = "fleet", "keys", "decisions"
_ORDER_SECONDS = 1.0  # within which a command reaches every worker that does not hang
_LOOK_SECONDS = 0.02  # interval of checks whether it has, or whether the last request of a backend has ended
_LOOK_AT_REPLICAS_SECONDS = 0.1  # the same for other replicas
_MOVE_SECONDS = 1.0  # a stream that could not be moved, for example because it had just begun, can be moved later


class Order(Protocol):
    """Sends an operator's command to all workers."""

    def __call__(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Take the backend ``url`` out of rotation, or put it back."""


class Replicas(Protocol):
    """The other replicas of the proxy."""

    async def fleets(self) -> tuple[Mapping[str, Mapping[str, Any]], tuple[str, ...]]:
        """The answer of each replica, see :meth:`AllWorkers.own_fleet`, by name; the names of those that are silent."""


@dataclass(frozen=True, slots=True)
class SiblingAnswers:
    """The answers of all siblings to one query, and of all replicas to one about backends.

    Attributes:
        answers: of the siblings that answered.
        silent: numbers of the siblings that did not answer.
        replicas: the answers of other replicas, by name; see :meth:`AllWorkers.own_fleet`.
        silent_replicas: names of the replicas that did not answer; ``None`` if none was asked.
    """

    answers: tuple[Mapping[str, Any], ...]
    silent: tuple[int, ...]
    replicas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    silent_replicas: tuple[str, ...] | None = None

    def drained(self, url: str) -> bool:
        """Whether no other worker or replica gives the backend ``url`` new requests; false if one is silent."""
        return (
            not self.silent
            and not self.silent_replicas
            and all(url in answer["draining"] for answer in self.answers)
            and all(url in one["draining"] or url not in one["backends"] for one in self.replicas.values())
        )

    def agree_on(self, url: str, *, is_present: bool) -> bool:
        """Whether the backend ``url`` is in all fleets, or in none; false if a worker or replica is silent."""
        return not self.silent_replicas and self.have_followed(url, is_present=is_present)

    def have_followed(self, url: str, *, is_present: bool) -> bool:
        """The same, but silent replicas do not matter: they will follow later."""
        all_answers = (*self.answers, *self.replicas.values())
        return not self.silent and all((url in answer["backends"]) is is_present for answer in all_answers)

    def requests_on(self, url: str) -> int:
        """The requests of other replicas on the backend ``url``."""
        return sum(one["requests"].get(url, 0) for one in self.replicas.values())

    def by_replica(self, url: str) -> list[dict[str, Any]]:
        """What each other replica knows of the backend ``url``."""
        return [
            {
                "replica": name,
                "in_fleet": url in one["backends"],
                "draining": url in one["draining"],
                "requests_in_flight": one["requests"].get(url, 0),
            }
            for name, one in self.replicas.items()
        ]


class AllWorkers:
    """This worker and its siblings.

    Args:
        dispatcher: of this worker.
        decisions: of this worker.
        ring: the keys of clients; ``None`` when there are none.
        allowances: the remaining allowances of the keys in this worker.
        siblings: the other workers.
        order: sends a command to all workers, and to all replicas.
        departures: the backends that have left the fleet.
        replicas: the other replicas; ``None`` without shared state.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        decisions: Decisions,
        ring: KeyRing | None,
        allowances: Allowances,
        siblings: Siblings,
        order: Order,
        departures: Departures,
        replicas: Replicas | None = None,
    ) -> None:
        self._fleet = dispatcher.fleet
        self._queue = dispatcher.queue
        self._decisions = decisions
        self._ring = ring
        self._allowances = allowances
        self._siblings = siblings
        self._order = order
        self._departures = departures
        self._replicas = replicas

    @property
    def answers(self) -> Answers:
        """The answers of this worker to queries of its siblings."""
        return {_FLEET: self._answer_fleet, _KEYS: self._answer_keys, _DECISIONS: self._answer_decisions}

    @property
    def waiting(self) -> int:
        """Requests in the queue of this worker."""
        return self._queue.count

    def own_decisions(self) -> list[dict[str, Any]]:
        """The latest decisions of this worker."""
        return self._decisions.as_json()

    def set_draining(self, backend: Backend, *, is_draining: bool, moves: bool = False) -> None:
        """Take ``backend`` out of rotation, or put it back: at once here, a moment later in the siblings.

        Args:
            moves: whether other backends take over its requests, as far as they can.
        """
        self._fleet.set_draining(backend, is_draining=is_draining)
        if moves:
            self._fleet.move_requests(backend)
        self._order(backend.url, is_draining=is_draining, moves=moves)

    async def drain(self, backend: Backend, wait_seconds: float, *, moves: bool) -> None:
        """Take ``backend`` out of rotation, and wait until no worker has a request on it.

        Args:
            wait_seconds: longest wait; it also ends when the backend is put back.
            moves: whether other backends take over its requests. It is tried again while requests are left.
        """
        clock = self._fleet.clock
        deadline = clock() + wait_seconds
        self.set_draining(backend, is_draining=True, moves=moves)
        moved_at = clock()
        # Only operators' commands wait for the end of requests, so they poll instead of being notified.
        while backend.load.proxy_leases and backend.is_draining and clock() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            if moves and clock() >= moved_at + _MOVE_SECONDS:
                self.set_draining(backend, is_draining=True, moves=True)
                moved_at = clock()
        await self.others_end(backend.url, deadline, lambda: backend.is_draining)

    async def others_end(self, url: str, deadline: float, goes_on: Callable[[], bool]) -> None:
        """Wait until no other replica has a request on the backend ``url``; only while it ``goes_on``."""
        while self._replicas is not None and goes_on() and self._fleet.clock() < deadline:
            if not (await self.fleet()).requests_on(url):
                return
            await asyncio.sleep(_LOOK_AT_REPLICAS_SECONDS)

    async def fleet_once_drained(self, backend: Backend) -> SiblingAnswers:
        """As :meth:`fleet`, once all others have drained ``backend`` or the deadline of the command has passed."""
        deadline = self._fleet.clock() + _ORDER_SECONDS
        siblings = await self.fleet()
        while not siblings.drained(backend.url) and backend.is_draining and self._fleet.clock() < deadline:
            await self.pause()
            siblings = await self.fleet()
        return siblings

    async def pause(self) -> None:
        """Pause between two checks whether a command has reached all workers and replicas."""
        await asyncio.sleep(_LOOK_SECONDS if self._replicas is None else _LOOK_AT_REPLICAS_SECONDS)

    async def fleet(self) -> SiblingAnswers:
        """Of each sibling and replica: ``backends`` and ``draining``, base URLs; ``waiting``, requests in its queue."""
        if self._replicas is None:
            return await self._ask(_FLEET)
        siblings, others = await asyncio.gather(self._ask(_FLEET), self._replicas.fleets())
        return SiblingAnswers(siblings.answers, siblings.silent, *others)

    async def own_fleet(self) -> dict[str, Any]:
        """What all workers of this replica know, for other replicas.

        Returns:
            ``backends``: base URLs of those in the fleet of any worker. ``draining``: of those that no worker gives
            requests. ``requests``: how many each has of all workers. ``waiting``: requests in queues.
        """
        siblings = await self._ask(_FLEET)
        own = [backend.url for backend in self._fleet.backends]
        urls = {*own, *(url for answer in siblings.answers for url in answer["backends"])}
        draining = {backend.url for backend in self._fleet.backends if backend.is_draining}
        leases = [(one.url, one.load.proxy_leases) for one in (*self._fleet.backends, *self._departures.backends)]
        return {
            "backends": sorted(urls),
            "draining": [url for url in sorted(draining) if siblings.drained(url)],
            "requests": {url: sum(count for one, count in leases if one == url) for url, count in leases if count},
            "waiting": self.waiting + sum(answer["waiting"] for answer in siblings.answers),
        }

    async def keys(self) -> SiblingAnswers:
        """Of each sibling, by the name of each key: ``requests_in_flight``, ``requests_left``, ``tokens_left``."""
        return await self._ask(_KEYS)

    async def decisions(self) -> SiblingAnswers:
        """Of each sibling: ``decisions``, its latest ones."""
        return await self._ask(_DECISIONS)

    def silence(self, siblings: SiblingAnswers) -> dict[str, Any]:
        """For a reply about all workers and replicas: those missing in it. Empty for a process that is on its own."""
        silent: dict[str, Any] = {}
        if self._siblings.others:
            silent["silent_workers"] = list(siblings.silent)
        if siblings.silent_replicas is not None:
            silent["silent_replicas"] = list(siblings.silent_replicas)
        return silent

    async def _ask(self, question: str) -> SiblingAnswers:
        answers = await self._siblings.ask(question)
        parsed = tuple(json.loads(answer) for answer in answers.values() if answer is not None)
        return SiblingAnswers(parsed, tuple(number for number, answer in answers.items() if answer is None))

    def _answer_fleet(self) -> bytes:
        draining = [backend.url for backend in self._fleet.backends if backend.is_draining]
        backends = [backend.url for backend in self._fleet.backends]
        return json.dumps({"backends": backends, "draining": draining, "waiting": self.waiting}).encode()

    def _answer_keys(self) -> bytes:
        now = self._allowances.clock()
        allowances = {key.name: self._allowances.of(key) for key in self._ring or ()}
        return json.dumps(
            {name: {"requests_in_flight": one.in_flight, **one.left(now)} for name, one in allowances.items()}
        ).encode()

    def _answer_decisions(self) -> bytes:
        return json.dumps({"decisions": self.own_decisions()}).encode()
