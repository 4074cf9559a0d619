"""What is counted of requests."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from inference_engine_proxy_server.usage.tokens import TokenUse

__all__ = ["COUNTS", "Counts", "Place"]


class Place(NamedTuple):
    """What a row of the ledger is about.

    Attributes:
        hour: in which the requests ended, see :mod:`~.periods`.
        key: name of the API key; empty for requests without one.
        model: as requests name it; empty if it is not known.
    """

    hour: int
    key: str
    model: str


class Counts(msgspec.Struct):
    """Sums over requests; each request counts once, however often it was retried or its stream resumed.

    Attributes:
        requests: that were sent to a backend and take a slot there.
        failed_requests: those of them that got an error, or a reply that broke.
        estimated_requests: those of them with tokens that are at least partly estimated.
        input_tokens: of prompts, cached tokens included.
        cached_tokens: input tokens that engines had in their caches, as far as they report them.
        output_tokens: of answers.
        estimated_tokens: input and output tokens of ``estimated_requests``, which are part of the sums above.
        seconds: from the complete request to the end of the reply, waiting in the queue included.
    """

    requests: int = 0
    failed_requests: int = 0
    estimated_requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    estimated_tokens: int = 0
    seconds: float = 0.0

    def count(self, used: TokenUse, seconds: float, *, has_failed: bool) -> None:
        """Add one request."""
        self.requests += 1
        self.failed_requests += has_failed
        self.estimated_requests += used.is_estimate
        self.input_tokens += used.input_tokens
        self.cached_tokens += used.cached_tokens
        self.output_tokens += used.output_tokens
        self.estimated_tokens += used.total if used.is_estimate else 0
        self.seconds += seconds

    def add(self, other: Counts) -> None:
        """Add the requests of ``other``."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COUNTS = Counts.__struct_fields__
"""The names of all counts, in their order everywhere."""
