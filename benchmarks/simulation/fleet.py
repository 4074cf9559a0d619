"""One run: clients send requests to proxy replicas, which forward them to engines; records what clients see."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from simulation.batching import BatchingEngine, Usage
from simulation.engine_spec import spec_in
from simulation.policies.base import Policy, Site
from simulation.replica import Replica
from simulation.requests import Prompt, Request
from simulation.trace import Absence, Aside, Session, Trace
from simulation.virtual_loop import VirtualLoop, virtual_loop

__all__ = ["Outcome", "Run", "run"]

_FIRST_ROUND_SECONDS = 0.01  # replicas poll every engine before they accept requests
_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 0.5  # until a client repeats a request that broke off


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request; times in seconds from its first attempt, the rest of its last one.

    ``was_misplaced``: its engine had no free slot when it came, although another one had.
    """

    arrived_at: float
    backend: int
    first_token: float
    whole: float
    prompt_tokens: int
    cached_tokens: int
    was_misplaced: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """The outcomes of all requests that count, and the longest queues in one engine and in one replica.

    ``unevenness``: requests of the busiest engine, relative to the mean of all; the mean over time.
    """

    outcomes: list[Outcome]
    most_in_engine: int
    most_in_replica: int
    unevenness: float = 1.0


def run(trace: Trace, policy: Callable[[Site], Policy], seed: int) -> Run:
    """Simulate ``trace`` with one seed. The same arguments give the same result."""
    random.seed(seed)  # the project's own code uses the global generator
    loop = virtual_loop()
    engines = [spec_in(trace, number).engine(loop) for number in range(trace.backends)]
    replicas = [
        Replica(loop, engines, policy, Random(f"replica {seed} {number}"), trace.engine, trace.poll_seconds)
        for number in range(trace.replicas)
    ]
    clients = _Clients(trace, loop, replicas, Random(f"clients {seed}"))
    if trace.absence is not None and not trace.absence.begin:
        engines[trace.absence.backend].is_up = False
    loop.run(until=_FIRST_ROUND_SECONDS)
    for session in trace.sessions(Random(f"trace {seed}"), trace.seconds):
        loop.at(_FIRST_ROUND_SECONDS + session.start, clients.begin, session)
    balance = _Balance(loop, engines, trace.warm_up, trace.seconds)
    if trace.absence is not None:
        _schedule(trace.absence, loop, engines[trace.absence.backend])
    loop.run(until=trace.seconds)
    while clients.are_busy:
        loop.run(until=loop.time() + 1.0)
    return Run(
        [outcome for outcome in clients.outcomes if outcome.arrived_at >= trace.warm_up],
        max(engine.most_waiting for engine in engines),
        max(replica.site.most_waiting for replica in replicas),
        balance.unevenness,
    )


class _Balance:
    """Looks at the requests of all engines twice a second, from ``begin`` to ``end``."""

    def __init__(self, loop: VirtualLoop, engines: Sequence[BatchingEngine], begin: float, end: float) -> None:
        self._loop = loop
        self._engines = engines
        self._end = end
        self._looks: list[float] = []
        loop.at(begin + _LOOK_SECONDS, self._look)

    @property
    def unevenness(self) -> float:
        """The mean of all looks; 1 if there was no request to see."""
        return sum(self._looks) / len(self._looks) if self._looks else 1.0

    def _look(self) -> None:
        requests = [engine.processing + len(engine.waiting) for engine in self._engines]
        if any(requests):
            self._looks.append(max(requests) * len(requests) / sum(requests))
        if self._loop.time() < self._end:
            self._loop.at(self._loop.time() + _LOOK_SECONDS, self._look)


def _schedule(absence: Absence, loop: VirtualLoop, engine: BatchingEngine) -> None:
    def leave() -> None:
        engine.is_up = False
        if absence.is_killed:
            engine.kill()

    def come_back() -> None:
        if engine.processing:
            loop.at(loop.time() + 1.0, come_back)
        else:
            engine.forget()
            engine.is_up = True

    loop.at(absence.begin, leave)
    loop.at(absence.end, come_back)


class _Clients:
    """All clients. A load balancer gives each of their requests to a replica, whatever the session."""

    def __init__(self, trace: Trace, loop: VirtualLoop, replicas: list[Replica], random: Random) -> None:
        self._trace = trace
        self._loop = loop
        self._replicas = replicas
        self._random = random
        self._requests = self._attempts = 0
        self._sessions = 0
        self.asking = 0
        self.outcomes: list[Outcome] = []

    @property
    def are_busy(self) -> bool:
        """Whether any request is in progress, or any will still be sent."""
        return bool(self.asking or (self._sessions and self._trace.finishes))

    def begin(self, session: Session) -> None:
        self._sessions += 1
        self._loop.at(self._loop.time() + session.turns[0].pause, self._ask, session, 0, ())

    def _ask(self, session: Session, number: int, context: Prompt) -> None:
        turn = session.turns[number]
        if self._has_ended():
            return
        prompt = (*context, *turn.added)

        def go_on() -> None:
            self._ask_aside(session, turn.after)
            if number + 1 < len(session.turns):
                pause = session.turns[number + 1].pause
                self._loop.at(self._loop.time() + pause, self._ask, session, number + 1, (*prompt, turn.answer))
            else:
                self._sessions -= 1

        self._send(session, Aside(prompt, turn.answer, turn.max_tokens, session.is_streamed), session.header, go_on)
        for aside in turn.beside:
            self._ask_aside(session, (aside,))

    def _ask_aside(self, session: Session, asides: Sequence[Aside]) -> None:
        """Send ``asides`` one after another."""
        if asides and not self._has_ended():
            self._send(session, asides[0], None, partial(self._ask_aside, session, asides[1:]))

    def _has_ended(self) -> bool:
        return self._loop.time() > self._trace.seconds and not self._trace.finishes

    def _send(self, session: Session, sent: Aside, header: str | None, go_on: Callable[[], None]) -> None:
        self._requests += 1
        self.asking += 1
        request = Request(
            self._requests, sent.prompt, sent.answer, sent.max_tokens, header, session.sender, sent.is_streamed
        )
        self.attempt(_Asking(self, request, self._loop.time(), go_on))

    def attempt(self, asking: _Asking) -> None:
        self._pick_replica().handle(asking)

    def _pick_replica(self) -> Replica:
        replicas = self._replicas
        if self._trace.takes_turns:
            self._attempts += 1
            return replicas[self._attempts % len(replicas)]
        return replicas[0 if len(replicas) == 1 else self._random.randrange(len(replicas))]

    def attempt_again(self, asking: _Asking) -> None:
        self._loop.at(self._loop.time() + _RETRY_SECONDS, self.attempt, asking)

    def answered(self, asking: _Asking, outcome: Outcome) -> None:
        self.asking -= 1
        self.outcomes.append(outcome)
        asking.go_on()


class _Asking:
    """A client waiting for an answer; ``go_on``: what it does afterwards."""

    __slots__ = ("_arrived_at", "_clients", "_first_token", "go_on", "request")

    def __init__(self, clients: _Clients, request: Request, now: float, go_on: Callable[[], None]) -> None:
        self._clients = clients
        self.request = request
        self.go_on = go_on
        self._arrived_at = now
        self._first_token = math.inf

    def first_token(self, now: float) -> None:
        self._first_token = min(self._first_token, now - self._arrived_at)  # a lost answer may have begun before

    def lost(self) -> None:
        self._clients.attempt_again(self)

    def done(self, backend: int, usage: Usage, now: float, *, was_misplaced: bool) -> None:
        outcome = Outcome(
            self._arrived_at,
            backend,
            self._first_token,
            now - self._arrived_at,
            usage.prompt_tokens,
            usage.cached_tokens,
            was_misplaced,
        )
        self._clients.answered(self, outcome)
