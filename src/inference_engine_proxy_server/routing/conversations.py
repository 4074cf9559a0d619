"""Keeps conversations on their backends while that costs nobody anything: only among equally loaded backends.

Replicas of the proxy do not tell each other where a conversation was, but each of them finds the same backend by a hash
of the first question. What other replicas have sent since the latest report of a backend is not known, so backends also
count as equally loaded if their difference may be due to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from inference_engine_proxy_server.requests.headers import session_id
from inference_engine_proxy_server.requests.turns import Turn
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.choice import Choice
from inference_engine_proxy_server.routing.decisions import BY_FIRST_QUESTION, KEPT_WARM
from inference_engine_proxy_server.routing.foreign_trend import ForeignTrend
from inference_engine_proxy_server.routing.rendezvous import highest_by_share

__all__ = ["Conversations", "Memory"]

_HEADER_SECTIONS = 256  # whose sessions are remembered: successive requests of a client have the same header lines
_FIRST_QUESTIONS = 4096  # whose latest messages are remembered
_ERRORS = 3.0  # loads that differ by fewer usual errors count as equal: the difference may be chance
_ENDED = 1.0  # foreign requests of a report that have probably ended: the previous turn, through another replica
_SHARED = math.inf


class Memory(Protocol):
    """Remembers a number for each of the latest conversations."""

    def remember(self, key: int, number: int) -> None:
        """Remember ``number``, from 0 to below 2**64, for ``key``, from -2**63 to below 2**63."""

    def recall(self, key: int) -> int | None:
        """The number for ``key``; ``None`` when unknown."""


class Conversations:
    """Which backend served the latest turn of each conversation.

    Args:
        memory: remembers the ``url_key`` of the backend.
        kind: of the turns that requests make.

    Attributes:
        kind: as given.
        kept: how many requests were kept on the backend of their previous turn.
        remember: remembers the ``url_key`` of the backend that gets a request, by the key of its turn.
    """

    def __init__(self, memory: Memory, kind: type[Turn] = Turn) -> None:
        self.kept = 0
        self.kind = kind
        self.remember = memory.remember
        self._recall = memory.recall
        self._session = lru_cache(_HEADER_SECTIONS)(session_id)
        self._sizes: dict[int, float] = {}  # of the latest messages, by the key of the first question

    def __repr__(self) -> str:
        return f"<Conversations, {self.kept} turns kept warm>"

    def choose(self, found: CandidateSet, turn: Turn, trend: ForeignTrend, clock: Callable[[], float]) -> Choice | None:
        """The conversation's backend if it ties for the lowest rank; ``None`` if another rule must decide.

        Messages are read only if there is a tie.

        Args:
            found: the candidates.
            turn: the turn that the request makes.
            trend: how the requests of other replicas change.
            clock: a monotonic clock, in seconds.
        """
        ranks = found.ranks
        least = min(ranks, default=math.inf)
        if least == math.inf:
            return None
        if trend.is_active:
            equal = _equal(found, least, trend, clock())
        elif ranks.count(least) > 1:
            equal = [at for at, rank in enumerate(ranks) if rank == least]
        else:
            return None
        if len(equal) < 2:
            return None
        at = self._warm(found, turn, equal)
        if at is not None:
            self.kept += 1
            return Choice(found.candidates[at], KEPT_WARM, found.candidates)
        at = self._agreed(found, turn, equal)
        return None if at is None else Choice(found.candidates[at], BY_FIRST_QUESTION, found.candidates)

    def remember_session(self, turn: Turn, candidate: Candidate) -> None:
        """``candidate`` gets the request that makes ``turn``. First turns are found by their key alone."""
        session = self._session(turn.fields)
        if session is not None:
            self.remember(turn.key_of_session(session), candidate.url_key)

    def _warm(self, found: CandidateSet, turn: Turn, equal: Sequence[int]) -> int | None:
        """The position of the backend that is known to have served an earlier turn, if it is one of ``equal``."""
        keys = turn.earlier_keys()
        session = self._session(turn.fields)
        if session is not None:
            keys = (*keys, turn.key_of_session(session))
        for key in keys:  # those of backends that hold most of the conversation first
            home = self._recall(key)
            at = None if home is None else found.position(home)
            if at is not None and at in equal:
                return at
        return None

    def _agreed(self, found: CandidateSet, turn: Turn, equal: Sequence[int]) -> int | None:
        """The position of the backend that all replicas choose among ``equal``; ``None`` for no conversation.

        A conversation grows from turn to turn. If requests with one first question do not, they are different prompts
        with the same examples, and would all go to one backend.
        """
        key = turn.first_question_key()
        if key is None:
            return None
        size = len(turn.messages)
        before = self._sizes.pop(key, 0.0)
        self._sizes[key] = size if size > before else _SHARED
        if len(self._sizes) > _FIRST_QUESTIONS:
            del self._sizes[next(iter(self._sizes))]
        if size <= before:
            return None
        costs = [found.costs[at] for at in equal]
        return equal[highest_by_share([found.candidates[at] for at in equal], costs, key)]


def _equal(found: CandidateSet, least: float, trend: ForeignTrend, now: float) -> Sequence[int]:
    """The positions of the backends whose load may be the lowest one, as far as reports show."""
    equal = []
    for at, (one, rank) in enumerate(zip(found.candidates, found.ranks, strict=True)):
        excess = rank - least
        if not excess or excess <= max(_ERRORS * one.doubt(trend, now), _probably_ended(one, now)):
            equal.append(at)
    return equal


def _probably_ended(candidate: Candidate, now: float) -> float:
    """What the rank of ``candidate`` probably contains too much: the previous turn has ended since it was reported."""
    report = candidate.report
    return 0.0 if report is None or report.at == now else min(_ENDED, candidate.load.foreign) * candidate.cost
