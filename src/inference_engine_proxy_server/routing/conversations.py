"""Keeps conversations on their backends while that costs nobody anything: only among equally loaded backends."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol

from inference_engine_proxy_server.requests.headers import session_id
from inference_engine_proxy_server.requests.turns import Turn
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.choice import Choice
from inference_engine_proxy_server.routing.decisions import KEPT_WARM

__all__ = ["Conversations", "Memory"]

_HEADER_SECTIONS = 256  # whose sessions are remembered: successive requests of a client have the same header lines


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

    def __repr__(self) -> str:
        return f"<Conversations, {self.kept} turns kept warm>"

    def choose(self, found: CandidateSet, turn: Turn) -> Choice | None:
        """The backend of the previous turn if it ties for the lowest rank; ``None`` if another rule must decide.

        Messages are read only if there is a tie.
        """
        ranks = found.ranks
        least = min(ranks, default=math.inf)
        if least == math.inf or ranks.count(least) < 2:
            return None
        keys = turn.earlier_keys()
        session = self._session(turn.fields)
        if session is not None:
            keys = (*keys, turn.key_of_session(session))
        for key in keys:  # those of backends that hold most of the conversation first
            home = self._recall(key)
            at = None if home is None else found.position(home)
            if at is not None and ranks[at] == least:
                self.kept += 1
                return Choice(found.candidates[at], KEPT_WARM, found.candidates)
        return None

    def remember_session(self, turn: Turn, candidate: Candidate) -> None:
        """``candidate`` gets the request that makes ``turn``. First turns are found by their key alone."""
        session = self._session(turn.fields)
        if session is not None:
            self.remember(turn.key_of_session(session), candidate.url_key)
