"""One run: clients send requests to proxy replicas, which forward them to engines; records what clients see."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from simulation.batching import BatchingEngine, Usage
from simulation.engine_spec import spec_in
from simulation.policies.base import Policy, Site
from simulation.replica import Replica
from simulation.requests import Prompt, Request
from simulation.trace import Absence, Session, Trace
from simulation.virtual_loop import VirtualLoop, virtual_loop

__all__ = ["Outcome", "Run", "run"]

_FIRST_ROUND_SECONDS = 0.01  # replicas poll every engine before they accept requests


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request; times in seconds from its arrival."""

    arrived_at: float
    backend: int
    first_token: float
    whole: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """The outcomes of all requests that count, and the longest queues in one engine and in one replica."""

    outcomes: list[Outcome]
    most_in_engine: int
    most_in_replica: int


def run(trace: Trace, policy: Callable[[Site], Policy], seed: int) -> Run:
    """Simulate ``trace`` with one seed. The same arguments give the same result."""
    random.seed(seed)  # the project's own code uses the global generator
    loop = virtual_loop()
    engines = [spec_in(trace, number).engine(loop) for number in range(trace.backends)]
    replicas = [
        Replica(loop, engines, policy, Random(f"replica {seed} {number}"), trace.engine)
        for number in range(trace.replicas)
    ]
    clients = _Clients(trace, loop, replicas, Random(f"clients {seed}"))
    loop.run(until=_FIRST_ROUND_SECONDS)
    for session in trace.sessions(Random(f"trace {seed}"), trace.seconds):
        loop.at(_FIRST_ROUND_SECONDS + session.start, clients.begin, session)
    if trace.absence is not None:
        _schedule(trace.absence, loop, engines[trace.absence.backend])
    loop.run(until=trace.seconds)
    while clients.asking:
        loop.run(until=loop.time() + 1.0)
    return Run(
        [outcome for outcome in clients.outcomes if outcome.arrived_at >= trace.warm_up],
        max(engine.most_waiting for engine in engines),
        max(replica.site.most_waiting for replica in replicas),
    )


def _schedule(absence: Absence, loop: VirtualLoop, engine: BatchingEngine) -> None:
    def leave() -> None:
        engine.is_up = False

    def come_back() -> None:
        if engine.processing:
            loop.at(loop.time() + 1.0, come_back)
        else:
            engine.forget()
            engine.is_up = True

    loop.at(absence.begin, leave)
    loop.at(absence.end, come_back)


class _Clients:
    """All clients: each turn of a session goes to a random replica, as through a load balancer."""

    def __init__(self, trace: Trace, loop: VirtualLoop, replicas: list[Replica], random: Random) -> None:
        self._trace = trace
        self._loop = loop
        self._replicas = replicas
        self._random = random
        self._requests = 0
        self.asking = 0
        self.outcomes: list[Outcome] = []

    def begin(self, session: Session) -> None:
        self._loop.at(self._loop.time() + session.turns[0].pause, self._ask, session, 0, ())

    def _ask(self, session: Session, number: int, context: Prompt) -> None:
        now, turn = self._loop.time(), session.turns[number]
        if now > self._trace.seconds:
            return
        self._requests += 1
        request = Request(
            self._requests,
            (*context, *turn.added),
            turn.answer,
            turn.max_tokens,
            session.header,
            session.sender,
            session.is_streamed,
        )
        self.asking += 1
        replica = self._replicas[0 if len(self._replicas) == 1 else self._random.randrange(len(self._replicas))]
        replica.handle(_Asking(self, session, number, request, now))

    def answered(self, asking: _Asking, outcome: Outcome) -> None:
        self.asking -= 1
        self.outcomes.append(outcome)
        session, following = asking.session, asking.number + 1
        if following < len(session.turns):
            context = (*asking.request.prompt, asking.request.answer)
            self._loop.at(self._loop.time() + session.turns[following].pause, self._ask, session, following, context)


class _Asking:
    """A client waiting for an answer."""

    __slots__ = ("_arrived_at", "_clients", "_first_token", "number", "request", "session")

    def __init__(self, clients: _Clients, session: Session, number: int, request: Request, now: float) -> None:
        self._clients = clients
        self.session = session
        self.number = number
        self.request = request
        self._arrived_at = now
        self._first_token = 0.0

    def first_token(self, now: float) -> None:
        self._first_token = now - self._arrived_at

    def done(self, backend: int, usage: Usage, now: float) -> None:
        outcome = Outcome(
            self._arrived_at,
            backend,
            self._first_token,
            now - self._arrived_at,
            usage.prompt_tokens,
            usage.cached_tokens,
        )
        self._clients.answered(self, outcome)
