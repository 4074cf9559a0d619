"""Counts finished requests of one kind. Every request passes here, so they only add to a few numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

from inference_engine_proxy_server.dashboard.latencies import BOUNDS, Counts
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["Tally", "has_failed"]

_COMPLETE = Outcome.COMPLETE
_FEW = 3  # requests; fewer are counted one by one, as in a large fleet, where hardly two of a batch have one backend
_columns = attrgetter("prompt_tokens", "cached_tokens", "output_tokens", "status", "outcome", "first_byte_seconds")


class Tally:
    """The requests with the same backend, model and key since it was made.

    Attributes:
        requests, errors: all of them, and those that failed.
        input_tokens, cached_tokens, output_tokens: as far as replies report them.
        credited_tokens: of the output tokens, those that were counted while their streams ran.
    """

    __slots__ = (
        "_latencies", "cached_tokens", "credited_tokens", "errors", "input_tokens", "output_tokens", "requests",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.input_tokens = self.cached_tokens = self.output_tokens = self.credited_tokens = 0
        self._latencies = [0] * (len(BOUNDS) + 1)

    def count(self, records: Sequence[RequestRecord]) -> None:
        """Add requests, at least one."""
        if len(records) < _FEW:
            for record in records:
                self._count_one(record)
            return
        self.requests += len(records)
        # Column by column, in C.
        prompts, cached, outputs, statuses, outcomes, first_bytes = zip(*map(_columns, records), strict=True)
        self.input_tokens += sum(filter(None, prompts))
        self.cached_tokens += sum(filter(None, cached))
        self.output_tokens += sum(filter(None, outputs))
        if max(statuses) >= 400 or outcomes.count(_COMPLETE) < len(records):
            self.errors += sum(map(has_failed, records))
            first_bytes = tuple(one.first_byte_seconds for one in records if one.status < 400)
        latencies = self._latencies
        for seconds in first_bytes:
            if seconds is not None:
                latencies[bisect_left(BOUNDS, seconds)] += 1

    def _count_one(self, record: RequestRecord) -> None:
        self.requests += 1
        self.errors += has_failed(record)
        self.input_tokens += record.prompt_tokens or 0
        self.cached_tokens += record.cached_tokens or 0
        self.output_tokens += record.output_tokens or 0
        seconds = record.first_byte_seconds
        if seconds is not None and record.status < 400:
            self._latencies[bisect_left(BOUNDS, seconds)] += 1

    @property
    def latencies(self) -> Counts:
        """From the complete request to the reply's first byte, see :mod:`~.latencies`; not of error replies."""
        return {bucket: count for bucket, count in enumerate(self._latencies) if count}


def has_failed(record: RequestRecord) -> bool:
    """Whether the client got a server error, a reply that broke, or no place in the queue."""
    return record.status >= 500 or record.outcome is Outcome.BROKEN or record.termination == "queue_full"
