"""What one worker contributes to a snapshot. Everything else is the same in all workers."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import msgspec

from inference_engine_proxy_server.dashboard.in_flight import InFlight
from inference_engine_proxy_server.dashboard.live_requests import LiveRequests, RequestsPart
from inference_engine_proxy_server.dashboard.traffic import Step, Traffic, Window
from inference_engine_proxy_server.dashboard.usage_totals import UsageTotals
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.telemetry.journal import Event, Journal

__all__ = ["Hits", "JournalPosition", "PartMaker", "Wanted", "WorkerPart"]

_LATELY_STEPS = 1  # for rates: the last 10 to 20 s
_MINUTE_STEPS = 5  # for percentiles and errors: the last 50 to 60 s


class JournalPosition(NamedTuple):
    """How much of a worker's journal is known.

    Attributes:
        process: a random name of the worker's process; a new process has a new journal.
        changed: number of the latest change that is known.
    """

    process: str = ""
    changed: int = 0


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """What a snapshot needs of a worker.

    Attributes:
        with_requests: whether each live request is shown.
        with_totals: whether it needs the history and the usage, which change only every ten seconds.
        known: the part of the journal that is known already.
    """

    with_requests: bool
    with_totals: bool
    known: JournalPosition


class Hits(NamedTuple):
    """Prompt tokens of one backend: in all, those expected in its cache, and those that were, as replies report."""

    prompt_tokens: float
    predicted_tokens: float
    cached_tokens: float


class WorkerPart(msgspec.Struct, gc=False):
    """The part of one worker.

    Attributes:
        worker: its number.
        requests: its live requests.
        lately: the traffic of the last 10 to 20 s. minute: of the last 50 to 60 s.
        hits: by base URL; empty if no policy learns.
        events: those that have changed since the position that is known, and the new position.
        journal: the position after them.
        in_flight: mean requests of each backend, by base URL and minute. Of all workers, as each of them counts them.
        steps: of the history; ``None`` if it is not wanted. usage: likewise.
    """

    worker: int
    requests: RequestsPart
    lately: Window
    minute: Window
    hits: dict[str, Hits]
    events: list[Event]
    journal: JournalPosition
    in_flight: dict[str, list[float]]
    steps: list[Step] | None
    usage: UsageTotals | None


class PartMaker:
    """Makes the part of this worker.

    Args:
        worker: its number.
        live: its live requests.
        traffic: its finished requests. usage: their tokens, by model and key.
        in_flight: samples of requests in flight.
        placement: has learned which prompts backends have cached.
        journal: its events.
    """

    def __init__(
        self,
        worker: int,
        live: LiveRequests,
        traffic: Traffic,
        usage: UsageTotals,
        in_flight: InFlight,
        placement: Placement,
        journal: Journal,
    ) -> None:
        self._worker = worker
        self._live = live
        self._traffic = traffic
        self._usage = usage
        self._in_flight = in_flight
        self._placement = placement
        self._journal = journal
        self._process = secrets.token_hex(4)

    def make(self, wanted: Wanted) -> WorkerPart:
        """The part as of now."""
        self._traffic.read()
        self._traffic.credit(self._live.progress())
        known = wanted.known.changed if wanted.known.process == self._process else 0
        learned = self._placement.learned()
        return WorkerPart(
            worker=self._worker,
            requests=self._live.part(with_rows=wanted.with_requests),
            lately=self._traffic.window(_LATELY_STEPS),
            minute=self._traffic.window(_MINUTE_STEPS),
            hits={
                one.url: Hits(one.prompt_tokens, one.predicted_tokens, one.cached_tokens)
                for one in (() if learned is None else learned.backends)
            },
            events=self._journal.since(known),
            journal=JournalPosition(self._process, self._journal.changed),
            in_flight=self._in_flight.means(),
            steps=list(self._traffic.steps) if wanted.with_totals else None,
            usage=self._usage if wanted.with_totals else None,
        )
