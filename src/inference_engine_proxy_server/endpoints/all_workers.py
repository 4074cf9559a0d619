"""What operators ask of one worker and mean of all: asked of its siblings, and told to them.

A process that is alone has no siblings, and all of this is about that one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.dispatch.backend_pool import BackendPool
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.processes.siblings import Answers, Siblings

__all__ = ["AllWorkers", "Order", "SiblingAnswers"]

_FLEET, _KEYS, _DECISIONS = "fleet", "keys", "decisions"
_ORDER_SECONDS = 1.0  # in which an order reaches every worker that is not hanging
_LOOK_SECONDS = 0.02  # between two looks whether it has


class Order(Protocol):
    """Passes an operator's order on to all workers."""

    def __call__(self, url: str, *, is_draining: bool) -> None:
        """The backend ``url`` gets no new requests, or does so again."""


@dataclass(frozen=True, slots=True)
class SiblingAnswers:
    """What siblings answered.

    Attributes:
        answers: of those who did.
        silent: numbers of those who did not.
    """

    answers: tuple[Mapping[str, Any], ...]
    silent: tuple[int, ...]

    def drained(self, url: str) -> bool:
        """Whether no sibling gives the backend ``url`` new requests; of a silent one that is not known."""
        return not self.silent and all(url in told["draining"] for told in self.answers)


class AllWorkers:
    """This worker and its siblings.

    Args:
        pool: this worker's.
        ring: the keys of clients; ``None``: there are none.
        allowances: what is left of them here.
        siblings: the others.
        order: reaches all; ``None``: there are no others.
    """

    def __init__(
        self, pool: BackendPool, ring: KeyRing | None, allowances: Allowances, siblings: Siblings, order: Order | None
    ) -> None:
        self._pool = pool
        self._ring = ring
        self._allowances = allowances
        self._siblings = siblings
        self._order = order

    @property
    def answers(self) -> Answers:
        """What this worker says when it is a sibling."""
        return {_FLEET: self._own_fleet, _KEYS: self._own_keys, _DECISIONS: self._own_decisions}

    def drain(self, backend: Backend, *, is_draining: bool) -> None:
        """Give ``backend`` no new requests, or do so again: here at once, elsewhere in a moment."""
        self._pool.drain(backend, is_draining=is_draining)
        if self._order is not None:
            self._order(backend.url, is_draining=is_draining)

    async def fleet_once_drained(self, backend: Backend) -> SiblingAnswers:
        """As :meth:`fleet`, when every sibling knows that ``backend`` is drained, or should have known."""
        deadline = self._pool.clock() + _ORDER_SECONDS
        told = await self.fleet()
        while not told.drained(backend.url) and backend.is_draining and self._pool.clock() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            told = await self.fleet()
        return told

    async def fleet(self) -> SiblingAnswers:
        """Of each sibling: ``draining``, URLs of backends, and ``waiting``, a number of requests."""
        return await self._ask(_FLEET)

    async def keys(self) -> SiblingAnswers:
        """Of each sibling by the name of each key: ``requests_in_flight``, ``requests_left``, ``tokens_left``."""
        return await self._ask(_KEYS)

    async def decisions(self) -> SiblingAnswers:
        """Of each sibling its latest ``decisions``."""
        return await self._ask(_DECISIONS)

    def silence(self, told: SiblingAnswers) -> dict[str, Any]:
        """For a reply about all: who is missing in it. Nothing where there are no siblings."""
        return {"silent_workers": list(told.silent)} if self._siblings.others else {}

    async def _ask(self, question: str) -> SiblingAnswers:
        answers = await self._siblings.ask(question)
        told = tuple(json.loads(answer) for answer in answers.values() if answer is not None)
        return SiblingAnswers(told, tuple(number for number, answer in answers.items() if answer is None))

    def _own_fleet(self) -> bytes:
        draining = [backend.url for backend in self._pool.backends if backend.is_draining]
        return json.dumps({"draining": draining, "waiting": self._pool.line.count}).encode()

    def _own_keys(self) -> bytes:
        now = self._allowances.clock()
        allowances = {key.name: self._allowances.of(key) for key in self._ring or ()}
        return json.dumps(
            {name: {"requests_in_flight": one.in_flight, **one.left(now)} for name, one in allowances.items()}
        ).encode()

    def _own_decisions(self) -> bytes:
        decisions = self._pool.decisions
        return json.dumps({"decisions": [] if decisions is None else decisions.as_json()}).encode()
