"""Explains routing: the latest decisions, with the values that were compared for each candidate.

Recording a decision is cheap: it stores references to existing objects, and formats them only when it is read.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.errors import BackendError, BackendLacks
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.headers import wants_explanation
from inference_engine_proxy_server.routing.balancer import LAST_CHOICE
from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = [
    "BY_FIRST_QUESTION",
    "KEPT",
    "KEPT_WARM",
    "RANK_TERMS",
    "TIED",
    "Decision",
    "Decisions",
    "Ranked",
    "Row",
    "Rule",
]

KEPT = 100
"""How many decisions are kept."""

_IN_HEADER = 8  # candidates; with their terms about 1.5 KiB, which every HTTP client accepts in a header section
_SHADOW_IN_HEADER = 2  # candidates of the shadow policy: the header must stay short
_MODEL_CHARACTERS = 200
_FIELD = b"x-proxy-decision: "

# Reasons in words, by rule; and the values that belong to them, by term.
_WORDS = {
    "tied": "it holds what the request names",
    "least_requests": "fewest requests",
    "kept_warm": "it served the previous turn",
    "by_first_question": "hash of the first question",
    "expected_time": "lowest expected cost",
    "power_of_two": "fewer requests",
    "round_robin": "its turn",
    "rendezvous": "highest hash of the prompt",
}
_SHOWN = {"load": "{:g} requests", "idle_seconds": "idle for {:.0f} s", "held_tokens": "{:.0f} tokens cached"}

Row = tuple[float, ...]


class Rule(Protocol):
    """A rule by which backends are compared."""

    @property
    def name(self) -> str:
        """Name of the policy."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the values computed for a candidate; the last value is compared."""

    @property
    def most_wins(self) -> bool:
        """Whether the highest value of the last term wins instead of the lowest."""


class Candidate(Protocol):
    """A backend that could have served the request."""

    @property
    def config(self) -> BackendConfig:
        """Configuration of the backend."""


@dataclass(frozen=True, slots=True)
class _Fixed:
    name: str
    terms: tuple[str, ...] = ()
    most_wins: bool = False


TIED: Rule = _Fixed("tied")
"""The request needs a resource of that backend, so nothing is compared."""

RANK_TERMS = ("load", "cost", "rank")
"""Names of the values in the rows of a decision by load."""

KEPT_WARM: Rule = _Fixed("kept_warm", RANK_TERMS)
"""Backends tie for the lowest rank, and the chosen one served the previous turn of the conversation."""

BY_FIRST_QUESTION: Rule = _Fixed("by_first_question", RANK_TERMS)
"""Backends tie for the lowest rank, and all replicas choose this one for the conversation, by the same hash."""


class Ranked:
    """The rows of a decision by load: load, cost and rank of each candidate.

    Args:
        ranks, costs: as for :func:`~.balancer.choose`; copied.
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
        rule: the rule that decided.
        candidates: the backends that could have been chosen.
        rows: the values of the rule's terms for each candidate, in the same order; empty for a candidate that was not
            considered.
        chosen: the candidate that was chosen.
        model: the model that the request names; ``None`` if it names none or was not read.
        prompt_tokens: estimated tokens of the prompt; ``None`` if it was not read.
        request_id: the request's id.
        at: when the request was sent, in seconds since the epoch.
        resumes: how often the stream of the request was resumed before.
        failures: the error codes of backends that failed to serve it before, by name.
        shadow: what the shadow policy would have decided; ``None`` without one.
    """

    rule: Rule
    candidates: Sequence[Candidate]
    rows: Iterable[Row]
    chosen: Candidate
    model: str | None = None
    prompt_tokens: float | None = None
    request_id: str = ""
    at: float = 0.0
    resumes: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    shadow: Decision | None = None
    _reason: str = field(default="", init=False)

    @property
    def reason(self) -> str:
        """Why the backend was chosen, in a few words."""
        if not self._reason:
            self._reason = f"{self._why()}{', after a failure elsewhere' if self.failures else ''}"
        return self._reason

    def _why(self) -> str:
        words = _WORDS.get(self.rule.name, self.rule.name.replace("_", " "))
        pairs = list(zip(self.candidates, self.rows, strict=True))
        chosen = next((row for one, row in pairs if one is self.chosen), ())
        if not chosen:
            return words
        open_rows = [row for _, row in pairs if row is chosen or (row and math.isfinite(row[-1]))]
        if len(open_rows) == 1:
            return "the only one that could be chosen"
        ties = sum(row[-1] == chosen[-1] for row in open_rows)
        tie = f", {ties} of {len(open_rows)} tied" if ties > 1 else f" of {len(open_rows)}"
        values = zip(self.rule.terms, chosen, strict=False)
        shown = ", ".join(_SHOWN[term].format(value) for term, value in values if term in _SHOWN and value < math.inf)
        return f"{words}{tie}{f' ({shown})' if shown else ''}"

    def as_json(self, most: int | None = None) -> dict[str, Any]:
        """The decision as a JSON object; the chosen candidate first, then the others from best to worst.

        Args:
            most: how many candidates to show; ``None`` for all.
        """
        compared = self.comparison(most)
        shown = {
            "at": round(self.at, 3),
            "request_id": self.request_id,
            "model": self.model and self.model[:_MODEL_CHARACTERS],
            "policy": compared.pop("policy"),
            "chosen": compared.pop("chosen"),
            "prompt_tokens": self.prompt_tokens and round(self.prompt_tokens),
            "resumes": self.resumes,
            "failures": self.failures,
            **compared,
        }
        if self.shadow is not None:
            shown["shadow"] = self.shadow.comparison(None if most is None else _SHADOW_IN_HEADER)
        return shown

    def comparison(self, most: int | None) -> dict[str, Any]:
        """The part of :meth:`as_json` about the candidates; ``most`` as there."""
        pairs = sorted(zip(self.candidates, self.rows, strict=True), key=self._order)
        shown = [{"name": one.config.name, **self._numbers(row)} for one, row in pairs[:most]]
        return {
            "policy": self.rule.name,
            "chosen": self.chosen.config.name,
            "candidates": shown,
            "left_out": len(pairs) - len(shown),
        }

    def _order(self, pair: tuple[Candidate, Row]) -> tuple[bool, float]:
        one, row = pair
        compared = row[-1] if row else math.inf
        return one is not self.chosen, -compared if row and self.rule.most_wins else compared

    def _numbers(self, row: Row) -> dict[str, float | None]:
        """The terms by name; ``None`` for an infinite or undefined value, which JSON lacks."""
        return {
            term: round(number, 6) if math.isfinite(number) else None
            for term, number in zip(self.rule.terms, row, strict=False)
        }


class Decisions:
    """The latest decisions.

    Args:
        answers_header: whether ``x-proxy-explain: 1`` in a request adds the decision to its reply.

    Attributes:
        latest: from the oldest to the newest, at most :data:`KEPT`.
    """

    def __init__(self, *, answers_header: bool) -> None:
        self._answers_header = answers_header
        self.latest: deque[Decision] = deque(maxlen=KEPT)

    def record(
        self, decision: Decision, exchange: Exchange, resumes: int, failed: Mapping[Backend, BackendError]
    ) -> bytes:
        """Record the decision of the next attempt for ``exchange``.

        Args:
            decision: the decision.
            exchange: the request.
            resumes: how often its stream was resumed before.
            failed: the backends that are excluded, with the reasons.

        Returns:
            The ``common_fields`` of ``exchange``, with the decision's header line if the request asks for it. The line
            replaces that of an earlier attempt.
        """
        decision.request_id = exchange.request_id
        decision.at = time.time()
        decision.resumes = resumes
        decision.failures = {
            one.config.name: error.code for one, error in failed.items() if not isinstance(error, BackendLacks)
        }
        self.latest.append(decision)
        if not self._answers_header or not wants_explanation(exchange.head.passed_on):
            return exchange.common_fields
        kept, _, _ = exchange.common_fields.partition(_FIELD)
        value = json.dumps(decision.as_json(_IN_HEADER), separators=(",", ":")).encode()
        return b"%b%b%b\r\n" % (kept, _FIELD, value)

    def as_json(self) -> list[dict[str, Any]]:
        """All decisions, the newest first."""
        return [decision.as_json() for decision in reversed(self.latest)]
