"""Rates and latencies of the last hour, from the records of finished requests.

A request costs one append. Its record is read when somebody looks, or every ten seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from inference_engine_proxy_server.dashboard.latencies import Counts, add, bucket_of, percentile
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["STEPS", "STEP_SECONDS", "Progress", "Step", "Sums", "Traffic", "Window", "has_failed", "merged_steps"]

STEP_SECONDS = 10
"""Length of a step of the history; steps begin at multiples of it since the epoch."""
STEPS = 360
"""Steps of the history: one hour."""

_STEPS_BY_BACKEND = 6  # of the latest steps, the sums of each backend are kept
_MOST_UNREAD = 65_536  # records; more than a process can serve in the time between two steps


class Sums(msgspec.Struct, gc=False):
    """What is summed over requests.

    Attributes:
        requests: that have ended. errors: of these, those that failed.
        tokens_in: of their prompts, as far as replies report them. tokens_out: of their answers likewise, and of the
            streams in progress, estimated.
        latencies: from the complete request to the reply's first byte, see :mod:`~.latencies`.
    """

    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    latencies: Counts = {}

    def count(self, record: RequestRecord, credited: int = 0) -> None:
        """Add one request; ``credited``: tokens of its answer that are counted already."""
        self.requests += 1
        self.errors += has_failed(record)
        self.tokens_in += record.prompt_tokens or 0
        self.tokens_out += max(0, (record.output_tokens or 0) - credited)
        if record.first_byte_seconds is not None and record.status < 400:
            bucket = bucket_of(record.first_byte_seconds)
            self.latencies[bucket] = self.latencies.get(bucket, 0) + 1

    def percentile(self, share: float) -> float | None:
        """The latency that ``share`` of all requests do not exceed; ``None`` without any."""
        return percentile(self.latencies, share)

    def add(self, more: Sums) -> None:
        """Add the requests of ``more``."""
        self.requests += more.requests
        self.errors += more.errors
        self.tokens_in += more.tokens_in
        self.tokens_out += more.tokens_out
        add(self.latencies, more.latencies)


class Step(msgspec.Struct, gc=False):
    """One step of the history.

    Attributes:
        number: seconds since the epoch, divided by ``STEP_SECONDS``.
        sums: over its requests.
        queue: requests that waited at its end.
    """

    number: int
    sums: Sums
    queue: int = 0


class Window(msgspec.Struct, gc=False):
    """The sums over a time that ends now.

    Attributes:
        seconds: its length.
        total: over all requests. by_backend: over those that a backend served, by its base URL.
    """

    seconds: float
    total: Sums
    by_backend: dict[str, Sums]


class Progress(NamedTuple):
    """The tokens that a live request has got so far, and the base URL of its backend."""

    request_id: str
    backend: str | None
    tokens: int


class Traffic:
    """Sums over the requests of this process.

    Args:
        is_own: whether a path is one of the proxy's own, so that its requests do not count.
        take: called with each record that counts, when it is read.
        now: seconds since the epoch.

    Attributes:
        observe: takes the record of a request that has ended.
        steps: the complete steps, at most ``STEPS``; a step without the process is missing.
    """

    def __init__(
        self,
        is_own: Callable[[RequestRecord], bool],
        take: Callable[[RequestRecord], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._is_own = is_own
        self._take = take
        self._now = now
        self._unread: deque[RequestRecord] = deque(maxlen=_MOST_UNREAD)
        self.observe = self._unread.append
        self._began_at = now()
        self._number = int(self._began_at) // STEP_SECONDS
        self._sums = Sums()
        self._by_backend: dict[str, Sums] = {}
        self._credited: dict[str, int] = {}  # tokens of live requests that are counted, by request id
        self._earlier: deque[tuple[int, Mapping[str, Sums]]] = deque(maxlen=_STEPS_BY_BACKEND)
        self.steps: deque[Step] = deque(maxlen=STEPS)

    def __repr__(self) -> str:
        return f"<Traffic of {len(self.steps)} steps>"

    def read(self, most: int = _MOST_UNREAD) -> bool:
        """Count the requests that have ended since the last call, at most ``most``. Returns whether some are left."""
        unread = self._unread
        for _ in range(min(most, len(unread))):
            record = unread.popleft()
            if self._is_own(record):
                continue
            self._take(record)
            credited = self._credited.pop(record.request_id, 0)
            self._sums.count(record, credited)
            if record.backend is not None:
                self._sums_of(record.backend).count(record, credited)
        return bool(unread)

    def _sums_of(self, backend: str) -> Sums:
        sums = self._by_backend.get(backend)
        if sums is None:
            sums = self._by_backend[backend] = Sums()
        return sums

    def credit(self, progress: Iterable[Progress]) -> None:
        """Count the tokens that live requests have got since the last call; call :meth:`read` before.

        When such a request ends, only the rest of its tokens is counted.
        """
        credited: dict[str, int] = {}
        for live in progress:
            before = self._credited.get(live.request_id, 0)
            credited[live.request_id] = max(before, live.tokens)
            more = max(0, live.tokens - before)
            self._sums.tokens_out += more
            if live.backend is not None:
                self._sums_of(live.backend).tokens_out += more
        self._credited = credited

    def end_step(self, queue: int) -> bool:
        """Complete the current step, if its time is over; ``queue``: requests that wait now. Returns whether it was."""
        number = int(self._now()) // STEP_SECONDS
        if number == self._number:
            return False
        self.read()
        self.steps.append(Step(self._number, self._sums, queue))
        self._earlier.append((self._number, self._by_backend))
        self._number, self._sums, self._by_backend = number, Sums(), {}
        return True

    def window(self, steps: int) -> Window:
        """The current step and the ``steps`` before it, at most 6."""
        first = self._number - steps
        total, by_backend = Sums(), dict[str, Sums]()
        _add_all(total, by_backend, self._sums, self._by_backend)
        earlier = {step.number: step.sums for step in list(self.steps)[-steps:]}
        for number, sums in self._earlier:
            if number >= first and number in earlier:
                _add_all(total, by_backend, earlier[number], sums)
        begins_at = max(self._began_at, first * STEP_SECONDS)
        return Window(max(1.0, self._now() - begins_at), total, by_backend)


def has_failed(record: RequestRecord) -> bool:
    """Whether the client got a server error, a reply that broke, or no place in the queue."""
    return record.status >= 500 or record.outcome is Outcome.BROKEN or record.termination == "queue_full"


def _add_all(total: Sums, by_backend: dict[str, Sums], sums: Sums, more: Mapping[str, Sums]) -> None:
    total.add(sums)
    for url, one in more.items():
        if url not in by_backend:
            by_backend[url] = Sums()
        by_backend[url].add(one)


def merged_steps(parts: Iterable[Iterable[Step]]) -> dict[int, Step]:
    """The steps of several workers together, by number. The queue is that of all workers in each of them."""
    found: dict[int, Step] = {}
    for steps in parts:
        for step in steps:
            one = found.get(step.number)
            if one is None:
                one = found[step.number] = Step(step.number, Sums())
            one.sums.add(step.sums)
            one.queue = max(one.queue, step.queue)
    return found
