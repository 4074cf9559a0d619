"""What a trace is: a fleet, and what its clients do whatever the answers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from simulation.requests import Prompt, Segment

__all__ = ["Absence", "Session", "Trace", "Turn"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session.

    Attributes:
        pause: seconds from the answer to the turn before, or from the session's start.
        added: what is new in its prompt, after all prompts and answers before.
        answer: what the engine will say.
        max_tokens: the bound that it states, if any.
    """

    pause: float
    added: Prompt
    answer: Segment
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A client's requests, one after the other.

    Attributes:
        start: in seconds.
        sender: whose they are.
        header: what their session header says, if they have one.
        is_streamed: whether answers come token by token.
    """

    start: float
    turns: tuple[Turn, ...]
    sender: str
    header: str | None = None
    is_streamed: bool = True


@dataclass(frozen=True, slots=True)
class Absence:
    """A backend that is not there for a while, and comes back without anything cached; what it has, it finishes."""

    backend: int
    begin: float
    end: float


@dataclass(frozen=True)
class Trace:
    """A fleet and its clients.

    Attributes:
        name: such as ``rag-16-vllm``.
        about: what is hard about it.
        engine: "vllm" or "llama.cpp".
        seconds: for so long clients ask; who has begun then gets an answer.
        warm_up: the seconds of that which do not count: caches fill, and policies learn.
        sessions: what the clients do, by a source of chance and the seconds.
        seeds: one run with each; they count together.
        shares_prefixes: different clients' prompts begin alike, by more beginnings than fit into each engine's cache.
            llama.cpp's do not count: a slot shares nothing while it is at work.
        slowness: how many times slower some backends are.
        absence: a backend that leaves and returns.
    """

    name: str
    about: str
    engine: str
    backends: int
    sessions: Callable[[Random, float], list[Session]]
    replicas: int = 1
    seconds: float = 120.0
    warm_up: float = 30.0
    seeds: tuple[int, ...] = (1, 2)
    shares_prefixes: bool = False
    slowness: Mapping[int, float] = field(default_factory=dict)
    absence: Absence | None = None
