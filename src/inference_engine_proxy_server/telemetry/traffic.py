"""The requests of one route for one model: their times and tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from operator import attrgetter

from inference_engine_proxy_server.telemetry.histogram import (
    INTER_TOKEN_BOUNDS,
    SECONDS_BOUNDS,
    TOKEN_BOUNDS,
    Histogram,
)
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["TokenSums", "Totals", "Traffic"]

_columns = attrgetter(
    "seconds", "policy", "queue_seconds", "is_stream", "prompt_tokens", "output_tokens", "termination"
)


class TokenSums:
    """Tokens that engines have reported: of prompts, of their cached parts, and of answers."""

    __slots__ = ("cached", "output", "prompt")

    def __init__(self) -> None:
        self.prompt = self.cached = self.output = 0


class Totals:
    """What is counted over all routes and models.

    Attributes:
        aborts: replies that began and did not finish, by the side that ended them.
        decisions: requests by the policy that chose their backend; ``None`` for those that got none.
        failures: requests by the reason why they did not end well.
        tokens: by model and backend.
    """

    __slots__ = ("aborts", "decisions", "failures", "tokens")

    def __init__(self) -> None:
        self.aborts: Counter[str] = Counter()
        self.decisions: Counter[str | None] = Counter()
        self.failures: Counter[str] = Counter()
        self.tokens: defaultdict[tuple[str, str], TokenSums] = defaultdict(TokenSums)


class Traffic:
    """The requests of one route for one model.

    Args:
        route, model: the labels.
        totals: counts them, too.

    Attributes:
        seconds, first_tokens, inter_tokens, queue_waits: times of requests, in seconds.
        prompt_tokens, output_tokens: tokens of each request that reports them.
    """

    __slots__ = (
        "_totals", "first_tokens", "inter_tokens", "model", "output_tokens", "prompt_tokens", "queue_waits", "route",
        "seconds",
    )  # fmt: skip

    def __init__(self, route: str, model: str, totals: Totals) -> None:
        self.route = route
        self.model = model
        self.seconds = Histogram(SECONDS_BOUNDS)
        self.first_tokens = Histogram(SECONDS_BOUNDS)
        self.inter_tokens = Histogram(INTER_TOKEN_BOUNDS)
        self.queue_waits = Histogram(SECONDS_BOUNDS)
        self.prompt_tokens = Histogram(TOKEN_BOUNDS)
        self.output_tokens = Histogram(TOKEN_BOUNDS)
        self._totals = totals

    def add(self, records: Sequence[RequestRecord]) -> None:
        """Count ``records``, at least one."""
        # Column by column, in C: most records need nothing but these sums.
        seconds, policies, waits, streams, prompts, outputs, reasons = zip(*map(_columns, records), strict=True)
        self.seconds.add(list(seconds))
        self._totals.decisions.update(policies)
        if None in policies:
            waits = tuple(wait for wait, policy in zip(waits, policies, strict=True) if wait or policy is not None)
        self.queue_waits.add(list(waits))
        if True in streams:
            self._add_streams([one for one in records if one.is_stream])
        if prompts.count(None) + outputs.count(None) < 2 * len(records):
            self._add_tokens([one for one in records if one.prompt_tokens is not None or one.output_tokens is not None])
        if reasons.count("complete") < len(records):
            for one in records:
                if one.termination != "complete":
                    self._count_failure(one)

    def _add_streams(self, records: Sequence[RequestRecord]) -> None:
        self.first_tokens.add([one.first_byte_seconds or 0.0 for one in records])
        self.inter_tokens.add(
            [
                (one.seconds - (one.first_byte_seconds or 0.0)) / (one.output_tokens - 1)
                for one in records
                if one.output_tokens is not None and one.output_tokens > 1
            ]
        )

    def _add_tokens(self, records: Sequence[RequestRecord]) -> None:
        self.prompt_tokens.add([one.prompt_tokens for one in records if one.prompt_tokens is not None])
        self.output_tokens.add([one.output_tokens for one in records if one.output_tokens is not None])
        tokens, model = self._totals.tokens, self.model
        for one in records:
            sums = tokens[model, one.backend or ""]
            sums.prompt += one.prompt_tokens or 0
            sums.cached += one.cached_tokens or 0
            sums.output += one.output_tokens or 0

    def _count_failure(self, record: RequestRecord) -> None:
        self._totals.failures[record.termination] += 1
        if record.first_byte_seconds is not None and record.outcome is not Outcome.COMPLETE:
            self._totals.aborts["client" if record.outcome is Outcome.CLIENT_LEFT else "backend"] += 1
