"""Traces for one question: what do replicas that share nothing lose against one? Fixed before policies were changed.

The same requests come to fleets behind 1, 2, 4, 8 and 16 replicas, so that only the number of replicas differs. A load
balancer gives each replica a request in turn, as NGINX does, so successive turns of a conversation come to different
replicas. Engines are polled as often as by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple

from simulation.trace import Session, Trace
from simulation.use_cases import groups
from simulation.workloads import SHORT_ANSWER, Length, Texts, Workload, bursts, chat, mixed, poisson, together

__all__ = ["COUNTS", "REPLICA_TRACES"]

COUNTS = (1, 2, 4, 8, 16)
"""Numbers of replicas."""

_SECONDS = 60.0
_POLL_SECONDS = 3.0  # METRICS_CACHE_TTL_SECONDS
_HELD_OUT = (2001, 2002)
_PROMPT = Length(500, 1.0, 30, 8000)


class _Fleet(NamedTuple):
    """A fleet; ``power``: how many llama.cpp servers do as much as one of its servers."""

    engine: str
    backends: int
    power: float
    seeds: tuple[int, ...]


class _Kind(NamedTuple):
    """A kind of clients; ``workload``: theirs, for a fleet as powerful as that many llama.cpp servers."""

    name: str
    about: str
    workload: Callable[[float], Workload]


def _bursts(power: float) -> Workload:
    return together(mixed(0.3 * power, _PROMPT), bursts(0.05 * power, size=16, every_seconds=20.0 / power))


def _chats(power: float) -> Workload:
    return chat(0.22 * power, system_tokens=150, turns=5.0, think_seconds=4.0)


def _shots(power: float) -> Workload:
    """All requests begin with the same first question, so their prompts do not tell conversations apart."""

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        examples = tuple(texts.of(tokens) for tokens in (100, 150, 200, 150, 200))
        made = []
        for number, start in enumerate(poisson(random, 1.4 * power, seconds)):
            question = texts.of(_PROMPT.draw(random))
            turn = texts.turn(0.0, (*examples, question), SHORT_ANSWER)
            made.append(texts.session(start, [turn], f"question {number}"))
        return made

    return sessions


def _groups(power: float) -> Workload:
    return groups(0.5 * power, max(4, round(power)))


_FLEETS = (_Fleet("llama.cpp", 4, 1.0, (1, 2, 3, 4, 5, 6)), _Fleet("vllm", 16, 8.0, (1, 2)))

_KINDS = (
    _Kind("prompts", "single prompts that share nothing", lambda power: mixed(0.9 * power, _PROMPT)),
    _Kind("bursts", "16 prompts at once every 5 s, among others; they share nothing", _bursts),
    _Kind("chats", "conversations that share nothing but a short system prompt", _chats),
    _Kind("groups", "groups of conversations that share a system prompt of 2,000 tokens", _groups),
    _Kind("shots", "single questions after the same examples, written as a conversation (few-shot prompts)", _shots),
    _Kind("few", "few conversations: most slots are free", lambda power: _chats(0.2 * power)),
)


def _all() -> Iterator[Trace]:
    for kind in _KINDS:
        for fleet in _FLEETS:
            power = fleet.power * fleet.backends
            name = f"{kind.name}-{fleet.backends}-{fleet.engine.replace('.', '')}"
            trace = Trace(
                name,
                kind.about,
                fleet.engine,
                fleet.backends,
                kind.workload(power),
                seconds=_SECONDS,
                warm_up=0.0,
                seeds=fleet.seeds,
                finishes=True,
                held_out_seeds=_HELD_OUT,
                poll_seconds=_POLL_SECONDS,
                takes_turns=True,
            )
            for count in COUNTS:
                yield replace(trace, name=f"{name}-x{count}", replicas=count)


REPLICA_TRACES = {trace.name: trace for trace in _all()}
