"""Rates and latencies of the last hour, from the records of finished requests.

Requests are counted by kind. The sums are made when somebody looks, or every ten seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import NamedTuple

import msgspec

from inference_engine_proxy_server.dashboard.latencies import Counts, add, percentile
from inference_engine_proxy_server.dashboard.tally import Tally
from inference_engine_proxy_server.dashboard.usage_totals import UsageTotals
from inference_engine_proxy_server.telemetry.finished_requests import Batch, FinishedRequests
from inference_engine_proxy_server.telemetry.request_record import RequestRecord, grouped

__all__ = ["STEPS", "STEP_SECONDS", "Progress", "Step", "Sums", "Traffic", "Window", "merged_steps"]

STEP_SECONDS = 10
"""Length of a step of the history; steps begin at multiples of it since the epoch."""
STEPS = 360
"""Steps of the history: one hour."""

_STEPS_BY_BACKEND = 6  # of the latest steps, the sums of each backend are kept
_MOST_KINDS = 1000  # clients may make up names of models

_kind_of = attrgetter("backend", "model", "key")
_Kind = tuple[str | None, str | None, str | None]  # backend, model and key


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

    def add_tally(self, tally: Tally) -> None:
        """Add the requests of ``tally``."""
        self.requests += tally.requests
        self.errors += tally.errors
        self.tokens_in += tally.input_tokens
        self.tokens_out += tally.output_tokens - tally.credited_tokens
        add(self.latencies, tally.latencies)

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
        finished: the requests.
        is_own: whether a path is one of the proxy's own, so that its requests do not count.
        note_end: called with each request that did not end as usual.
        usage: gets the tokens by model and key.
        now: seconds since the epoch.

    Attributes:
        steps: the complete steps, at most ``STEPS``; a step without the process is missing.
    """

    def __init__(
        self,
        finished: FinishedRequests,
        is_own: Callable[[RequestRecord], bool],
        note_end: Callable[[RequestRecord], None],
        usage: UsageTotals,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._finished = finished
        self._is_own = is_own
        self._note_end = note_end
        self._usage = usage
        self._now = now
        self._tallies: dict[_Kind, Tally] = {}
        self._began_at = now()
        self._number = int(self._began_at) // STEP_SECONDS
        self._by_backend: dict[str | None, Sums] = {}  # of the current step; None: no backend
        self._credited: dict[str, int] = {}  # tokens of live requests that are counted, by request id
        self._earlier: deque[tuple[int, Mapping[str | None, Sums]]] = deque(maxlen=_STEPS_BY_BACKEND)
        self.steps: deque[Step] = deque(maxlen=STEPS)
        finished.subscribe(self._count)

    def __repr__(self) -> str:
        return f"<Traffic of {len(self.steps)} steps>"

    def _count(self, batch: Batch) -> None:
        for (backend, model, key), records in grouped(batch.records, _kind_of).items():
            counted = records if backend is not None else [one for one in records if not self._is_own(one)]
            if counted:
                tally = self._tallies.get((backend, model, key)) or self._new_tally((backend, model, key))
                tally.count(counted)
                if self._credited:
                    tally.credited_tokens += sum(map(self._take_credit, counted))
                for one in counted:
                    if one.termination != "complete":
                        self._note_end(one)

    def _take_credit(self, record: RequestRecord) -> int:
        return min(self._credited.pop(record.request_id, 0), record.output_tokens or 0)

    def _new_tally(self, kind: _Kind) -> Tally:
        if len(self._tallies) >= _MOST_KINDS:
            self._add_up()
        tally = self._tallies[kind] = Tally()
        return tally

    def read(self) -> None:
        """Add up what has ended since the last call."""
        self._finished.hand_over()
        self._add_up()

    def _add_up(self) -> None:
        for (backend, model, key), tally in self._tallies.items():
            self._sums_of(backend).add_tally(tally)
            if backend is not None:
                self._usage.add(model, key, tally)
        self._tallies.clear()

    def _sums_of(self, backend: str | None) -> Sums:
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
            self._sums_of(live.backend).tokens_out += max(0, live.tokens - before)
        self._credited = credited

    def end_step(self, queue: int) -> bool:
        """Complete the current step, if its time is over; ``queue``: requests that wait now. Returns whether it was."""
        number = int(self._now()) // STEP_SECONDS
        if number == self._number:
            return False
        self.read()
        self.steps.append(Step(self._number, _total(self._by_backend), queue))
        self._earlier.append((self._number, self._by_backend))
        self._number, self._by_backend = number, {}
        return True

    def window(self, steps: int) -> Window:
        """The current step and the ``steps`` before it, at most 6."""
        first = self._number - steps
        by_backend: dict[str | None, Sums] = {}
        for number, sums in (*self._earlier, (self._number, self._by_backend)):
            if number >= first:
                for backend, one in sums.items():
                    by_backend.setdefault(backend, Sums()).add(one)
        begins_at = max(self._began_at, first * STEP_SECONDS)
        served = {backend: sums for backend, sums in by_backend.items() if backend is not None}
        return Window(max(1.0, self._now() - begins_at), _total(by_backend), served)


def _total(by_backend: Mapping[str | None, Sums]) -> Sums:
    total = Sums()
    for sums in by_backend.values():
        total.add(sums)
    return total


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
