"""Definition of a trace: a fleet, and its clients' behaviour, which does not depend on the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

from simulation.requests import Prompt, Segment

__all__ = ["Absence", "Aside", "Session", "Trace", "Turn"]


@dataclass(frozen=True, slots=True)
class Aside:
    """A request that a client sends on its own account, outside the conversation, such as for a title.

    Attributes:
        prompt: its whole prompt.
        answer: text that the engine will generate.
        max_tokens: the request's token limit, if any.
        is_streamed: the answer is streamed.
    """

    prompt: Prompt
    answer: Segment
    max_tokens: int | None = None
    is_streamed: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session.

    Attributes:
        pause: seconds after the previous turn's answer, or after the session's start.
        added: text appended to the prompt, after all earlier turns and answers.
        answer: text that the engine will generate.
        max_tokens: the request's token limit, if any.
        beside: requests sent together with this one.
        after: requests sent one after another when this one's answer is complete. The next turn does not wait for them.
    """

    pause: float
    added: Prompt
    answer: Segment
    max_tokens: int | None = None
    beside: tuple[Aside, ...] = ()
    after: tuple[Aside, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """A client's consecutive requests.

    Attributes:
        start: start time in seconds.
        sender: the client.
        header: the session header, if any.
        is_streamed: answers are streamed.
    """

    start: float
    turns: tuple[Turn, ...]
    sender: str
    header: str | None = None
    is_streamed: bool = True


@dataclass(frozen=True, slots=True)
class Absence:
    """A backend that is unreachable for a while, and returns with an empty cache.

    Attributes:
        begin: when it leaves; 0: it joins the fleet at ``end``.
        is_killed: its current requests break off, and their clients send them again. Otherwise it finishes them.
    """

    backend: int
    begin: float
    end: float
    is_killed: bool = False


@dataclass(frozen=True)
class Trace:
    """A fleet and its clients.

    Attributes:
        name: such as ``rag-16-vllm``.
        about: what makes it hard.
        engine: "vllm" or "llama.cpp".
        seconds: time in which sessions send requests; requests in progress at the end are finished.
        warm_up: initial seconds that do not count, in which caches fill and policies learn.
        sessions: generates the sessions, given a random generator and ``seconds``.
        seeds: one run per seed; all runs count together.
        shares_prefixes: clients share prefixes, and more of them than fit into each engine's cache.
            Not set for llama.cpp, whose busy slots share nothing.
        slowness: factor by which some backends are slower.
        absence: outage of one backend.
        finishes: sessions that have begun send all their requests, so that every policy gets the same ones. Otherwise,
            nothing is sent after ``seconds``.
        slot_context: most tokens of a llama.cpp slot.
        held_out_seeds: seeds for a final check, on which no policy was tuned.
        poll_seconds: mean time between an engine's answer and a replica's next poll of it.
        takes_turns: the load balancer in front of the replicas gives each of them a request in turn; otherwise, it
            picks a random one.
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
    finishes: bool = False
    slot_context: int = 32_768
    held_out_seeds: tuple[int, ...] = ()
    poll_seconds: float = 1.0
    takes_turns: bool = False

    def shortened(self, part: float) -> Trace:
        """The same fleet and rates for the fraction ``part`` of the time."""
        absence = self.absence
        if absence is not None:
            absence = replace(absence, begin=absence.begin * part, end=absence.end * part)
        return replace(self, seconds=self.seconds * part, warm_up=self.warm_up * part, absence=absence)

    def at_rate(self, factor: float) -> Trace:
        """The same, with sessions that arrive at ``factor`` times the rate."""

        def sessions(random: Random, seconds: float) -> list[Session]:
            made = self.sessions(random, seconds * factor)
            return [replace(session, start=session.start / factor) for session in made]

        return replace(self, sessions=sessions)

    def resized(self, backends: int) -> Trace:
        """The same clients for a fleet of another size: sessions arrive at a rate in proportion to it.

        What one session or one burst does stays as it is, and so does the number of shared prefixes. A slow or absent
        backend moves to its relative place.
        """

        def moved(backend: int) -> int:
            return backend * backends // self.backends

        return replace(
            self.at_rate(backends / self.backends),
            backends=backends,
            slowness={moved(backend): factor for backend, factor in self.slowness.items()},
            absence=None if self.absence is None else replace(self.absence, backend=moved(self.absence.backend)),
        )
