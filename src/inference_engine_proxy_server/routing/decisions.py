"""Why requests were sent where they were: the latest decisions, with all that was compared.

To note one costs a few references, and tuples that are there anyway; words are made of it when somebody reads it.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.routing.balancer import LAST_CHOICE
from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = ["KEPT", "TIED", "Decision", "Decisions", "Ranked", "Row", "Rule"]

KEPT = 100
"""Decisions that are remembered; older ones are forgotten."""

_IN_HEADER = 8  # candidates: with their terms some 1.5 KiB, which every reader of header sections takes
_MODEL_CHARACTERS = 200
_FIELD = b"x-proxy-decision: "
_ASKED = re.compile(rb"(?:^|\n)x-proxy-explain:[ \t]*1[ \t]*\r\n", re.IGNORECASE)

Row = tuple[float, ...]


class Rule(Protocol):
    """By what is decided."""

    @property
    def name(self) -> str:
        """Of the policy."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the numbers that each candidate comes to; the last one is compared."""

    @property
    def most_wins(self) -> bool:
        """Whether the highest of these is best, and not the lowest."""


class Candidate(Protocol):
    """Whom a request could be sent to."""

    @property
    def config(self) -> BackendConfig:
        """Configuration of the backend."""


@dataclass(frozen=True, slots=True)
class _Fixed:
    name: str
    terms: tuple[str, ...] = ()
    most_wins: bool = False


TIED: Rule = _Fixed("tied")
"""What the request names is on that backend; nothing is compared."""


class Ranked:
    """What was compared where the fewest requests count: a row of load, cost and rank for each candidate.

    Args:
        ranks, costs: as :func:`~.balancer.choose` takes them; kept as they are now.
    """

    __slots__ = ("_costs", "_ranks")

    def __init__(self, ranks: Iterable[float], costs: Iterable[float]) -> None:
        self._ranks = tuple(ranks)
        self._costs = tuple(costs)

    def __iter__(self) -> Iterator[Row]:
        for rank, cost in zip(self._ranks, self._costs, strict=True):
            yield rank % LAST_CHOICE / cost, cost, rank


@dataclass(slots=True)
class Decision:
    """One choice among backends.

    Attributes:
        rule: by what it was made.
        candidates: those that could have been chosen.
        rows: the numbers of each, in that order, by the rule's terms; empty for one that was not looked at.
        chosen: one of them.
        model: that the request asks for; ``None``: none, or not known.
        prompt_tokens: an estimate; ``None``: nobody has read the prompt.
        request_id: of the request.
        at: when it was sent there, in seconds since the epoch.
    """

    rule: Rule
    candidates: Sequence[Candidate]
    rows: Iterable[Row]
    chosen: Candidate
    model: str | None = None
    prompt_tokens: float | None = None
    request_id: str = ""
    at: float = 0.0

    def told(self, most: int | None = None) -> dict[str, Any]:
        """It as JSON has it: the chosen one first, then the others from the best on.

        Args:
            most: so many candidates at most; ``None``: all.
        """
        pairs = sorted(zip(self.candidates, self.rows, strict=True), key=self._place)
        shown = [{"name": one.config.name, **self._numbers(row)} for one, row in pairs[:most]]
        return {
            "at": round(self.at, 3),
            "request_id": self.request_id,
            "model": self.model and self.model[:_MODEL_CHARACTERS],
            "policy": self.rule.name,
            "chosen": self.chosen.config.name,
            "prompt_tokens": self.prompt_tokens and round(self.prompt_tokens),
            "candidates": shown,
            "left_out": len(pairs) - len(shown),
        }

    def _place(self, pair: tuple[Candidate, Row]) -> tuple[bool, float]:
        one, row = pair
        compared = row[-1] if row else math.inf
        return one is not self.chosen, -compared if row and self.rule.most_wins else compared

    def _numbers(self, row: Row) -> dict[str, float | None]:
        """By their terms; ``None`` for what is infinite, or no number: it says that it cannot be."""
        return {
            term: round(number, 6) if math.isfinite(number) else None
            for term, number in zip(self.rule.terms, row, strict=False)
        }


class Decisions:
    """The latest of them.

    Args:
        answers_header: whether a reply tells its decision to who asks for it by ``x-proxy-explain: 1``.

    Attributes:
        latest: from the oldest to the newest, :data:`KEPT` at most.
    """

    def __init__(self, *, answers_header: bool) -> None:
        self._answers_header = answers_header
        self.latest: deque[Decision] = deque(maxlen=KEPT)

    def note(self, decision: Decision, exchange: Exchange) -> None:
        """``exchange`` is about to be sent where ``decision`` says; of one that is sent again, the last one counts."""
        decision.request_id = exchange.request_id
        decision.at = time.time()
        self.latest.append(decision)
        if self._answers_header and _ASKED.search(exchange.head.passed_on):
            kept, _, _ = exchange.limit_fields.partition(_FIELD)
            told = json.dumps(decision.told(_IN_HEADER), separators=(",", ":")).encode()
            exchange.limit_fields = exchange.extra_fields = b"%b%b%b\r\n" % (kept, _FIELD, told)

    def told(self) -> list[dict[str, Any]]:
        """All, the newest first, each as :meth:`Decision.told` has it."""
        return [decision.told() for decision in reversed(self.latest)]
