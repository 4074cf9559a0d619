"""One proxy replica: polls every engine periodically, and sends requests to the backend that its policy chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from simulation.batching import BatchingEngine, EngineState, Usage
from simulation.policies.base import Policy, ReplicaView, Site
from simulation.requests import Request
from simulation.virtual_loop import VirtualLoop

__all__ = ["Asking", "Replica"]

_POLL_JITTER = 0.2
_ANSWER_SECONDS = 0.006  # measured for /metrics of a busy vLLM 0.32


class Asking(Protocol):
    """A client waiting for an answer."""

    @property
    def request(self) -> Request:
        """The client's request."""

    def first_token(self, now: float) -> None:
        """The answer begins."""

    def lost(self) -> None:
        """The connection broke before the answer was complete."""

    def done(self, backend: int, usage: Usage, now: float, *, was_misplaced: bool) -> None:
        """The answer is complete. ``was_misplaced``: another engine had a free slot, while this one had none."""


class Replica:
    """One proxy replica."""

    def __init__(
        self,
        loop: VirtualLoop,
        engines: Sequence[BatchingEngine],
        policy: Callable[[Site], Policy],
        random: Random,
        engine: str,
        poll_seconds: float = 1.0,
    ) -> None:
        self._loop = loop
        self._engines = engines
        self._random = random
        self.view = ReplicaView.of(len(engines))
        self._poll_seconds = poll_seconds
        self.site = Site(self.view, loop, Random(random.random()), engine, self._send_who_waited, poll_seconds)
        self.policy = policy(self.site)
        self._waiting: dict[int, Asking] = {}
        for backend in range(len(engines)):
            self._ask(backend)

    def handle(self, asking: Asking) -> None:
        """Send the request to the backend that the policy chooses; if unreachable, to another one."""
        backend = self.policy.choose(asking.request, self.view, self._loop.time())
        if backend is None:
            self._waiting[asking.request.number] = asking
        else:
            self._send(asking, backend)

    def _send_who_waited(self, request: Request, backend: int) -> None:
        self._send(self._waiting.pop(request.number), backend)

    def _send(self, asking: Asking, backend: int) -> None:
        now, engine = self._loop.time(), self._engines[backend]
        if not engine.is_up:
            self.view.is_up[backend] = False
            self.policy.refused(asking.request, backend, now)
            return self.handle(asking)
        self.view.in_flight[backend] += 1
        self.policy.sent(asking.request, backend, now)
        is_misplaced = not engine.has_free_slot and any(one.has_free_slot for one in self._engines if one.is_up)
        return engine.submit(asking.request, _Relay(self, asking, backend, is_misplaced=is_misplaced))

    def _ask(self, backend: int) -> None:
        engine = self._engines[backend]
        state = engine.state() if engine.is_up else None
        now = self._loop.time()
        self._loop.at(now + _ANSWER_SECONDS, self._answer, backend, state, self.view.in_flight[backend], now)

    def _answer(self, backend: int, state: EngineState | None, own_when_asked: int, asked_at: float) -> None:
        now, view = self._loop.time(), self.view
        view.is_up[backend] = state is not None
        view.polled[backend] = state
        self.policy.polled(backend, state, max(own_when_asked, view.in_flight[backend]), asked_at, now)
        pause = self._poll_seconds * self._random.uniform(1 - _POLL_JITTER, 1 + _POLL_JITTER)
        self._loop.at(now + pause, self._ask, backend)


class _Relay:
    """Passes an answer through the replica to its client."""

    __slots__ = ("_asking", "_backend", "_is_misplaced", "_replica")

    def __init__(self, replica: Replica, asking: Asking, backend: int, *, is_misplaced: bool) -> None:
        self._replica = replica
        self._asking = asking
        self._backend = backend
        self._is_misplaced = is_misplaced

    def begun(self, cached_tokens: int) -> None:
        """Nothing reaches the proxy before the first token."""

    def wrote(self, tokens: int) -> None:
        """Not reported in simulations."""

    def first_token(self, now: float) -> None:
        self._asking.first_token(now)
        request = self._asking.request
        if request.is_streamed:  # otherwise, nothing arrives before the complete answer
            self._replica.policy.first_token(request, self._backend, now)

    def lost(self, now: float) -> None:
        self._replica.view.in_flight[self._backend] -= 1
        self._replica.view.is_up[self._backend] = False
        self._replica.policy.lost(self._asking.request, self._backend, now)
        self._asking.lost()

    def done(self, usage: Usage, now: float) -> None:
        self._replica.view.in_flight[self._backend] -= 1
        self._replica.policy.done(self._asking.request, self._backend, usage, now)
        self._asking.done(self._backend, usage, now, was_misplaced=self._is_misplaced)
