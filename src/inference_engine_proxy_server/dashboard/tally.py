"""Counts finished requests of one kind. Every request passes here, so it only adds to a few numbers."""

from __future__ import annotations

from bisect import bisect_left

from inference_engine_proxy_server.dashboard.latencies import BOUNDS, Counts
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["Tally", "has_failed"]

_COMPLETE = Outcome.COMPLETE


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

    def count(self, record: RequestRecord) -> None:
        """Add one request."""
        self.requests += 1
        if record.prompt_tokens:
            self.input_tokens += record.prompt_tokens
            if record.cached_tokens:
                self.cached_tokens += record.cached_tokens
        if record.output_tokens:
            self.output_tokens += record.output_tokens
        if record.status >= 400 or record.outcome is not _COMPLETE:
            self.errors += has_failed(record)
        if record.status < 400 and record.first_byte_seconds is not None:
            self._latencies[bisect_left(BOUNDS, record.first_byte_seconds)] += 1

    @property
    def latencies(self) -> Counts:
        """From the complete request to the reply's first byte, see :mod:`~.latencies`; not of error replies."""
        return {bucket: count for bucket, count in enumerate(self._latencies) if count}


def has_failed(record: RequestRecord) -> bool:
    """Whether the client got a server error, a reply that broke, or no place in the queue."""
    return record.status >= 500 or record.outcome is Outcome.BROKEN or record.termination == "queue_full"
