"""Collects the records of finished requests, and hands them over in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from inference_engine_proxy_server.telemetry.request_record import RequestRecord

__all__ = ["Batch", "FinishedRequests", "Subscriber"]

_BATCH = 64
"""Records that are handed over at the latest. One after another would cost more: by the end of the next request, the
code that counts and logs has left the processor's cache."""


class Batch(NamedTuple):
    """Requests that have ended, in this order.

    Attributes:
        records: at least one.
        ended_at: when each of them ended, in seconds since the epoch.
    """

    records: Sequence[RequestRecord]
    ended_at: Sequence[float]


Subscriber = Callable[[Batch], None]
"""Counts or logs finished requests."""


class FinishedRequests:
    """The records that subscribers have not seen yet. They call :meth:`hand_over` before they show what they know.

    Args:
        now: seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._subscribers: list[Subscriber] = []
        self._records: list[RequestRecord] = []
        self._ended_at: list[float] = []

    def __repr__(self) -> str:
        return f"<FinishedRequests, {len(self._records)} records wait>"

    def subscribe(self, subscriber: Subscriber) -> None:
        """Hand all batches to ``subscriber``, too."""
        self._subscribers.append(subscriber)

    def add(self, record: RequestRecord) -> None:
        """Add a request that ends now."""
        self._records.append(record)
        self._ended_at.append(self._now())
        if len(self._records) >= _BATCH:
            self.hand_over()

    def hand_over(self) -> None:
        """Hand all waiting records to the subscribers."""
        if self._records:
            batch = Batch(self._records, self._ended_at)
            self._records, self._ended_at = [], []
            for subscriber in self._subscribers:
                subscriber(batch)
