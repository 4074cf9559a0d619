"""Makes snapshots of the whole proxy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from inference_engine_proxy_server.dashboard.audience import Audience
from inference_engine_proxy_server.dashboard.merged_events import MergedEvents
from inference_engine_proxy_server.dashboard.snapshot import Facts, Snapshot
from inference_engine_proxy_server.dashboard.totals import Totals
from inference_engine_proxy_server.dashboard.traffic import STEP_SECONDS
from inference_engine_proxy_server.dashboard.workers import Workers
from inference_engine_proxy_server.dispatch.leases import Dispatcher

__all__ = ["Moment", "Reporter"]

_MOST_EVENTS = 200  # of a complete snapshot
_RECENT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A snapshot, and what is needed to tell what is new in it.

    Attributes:
        snapshot: what changes all the time.
        totals: what changes every ten seconds. step: when they were made.
        events: of all workers. events_changed: number of their latest change.
    """

    snapshot: Snapshot
    totals: Totals
    step: int
    events: MergedEvents
    events_changed: int

    def as_json(self, audience: Audience, shown: Moment | None = None) -> Mapping[str, Any]:
        """The snapshot for ``audience``.

        Args:
            audience: who gets it.
            shown: the moment that the audience has seen before: of events and totals, only what has changed since then
                is shown; ``None`` to show all.
        """
        is_complete = shown is None
        events = self.events.latest(_MOST_EVENTS) if shown is None else self.events.since(shown.events_changed)
        content = self.snapshot.as_json(audience, sorted(events, key=lambda event: event.event.at))
        if shown is None or shown.step != self.step:
            content |= self.totals.as_json(audience)
        return {"complete": is_complete, **content}


class Reporter:
    """Makes snapshots.

    Args:
        dispatcher: the fleet and the queue.
        workers: this worker and its siblings.
        facts: what never changes.
        sources: the source of each backend, by base URL.
    """

    def __init__(
        self, dispatcher: Dispatcher, workers: Workers, facts: Facts, sources: Callable[[], Mapping[str, str]]
    ) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._facts = facts
        self._sources = sources
        self._totals = Totals()
        self._step = 0  # in which the totals were made
        self._latest: Moment | None = None

    async def recent_moment(self) -> Moment:
        """The proxy as it was at most a second ago: anyone may ask, and must not make it work for each question."""
        latest = self._latest
        if latest is not None and 0 <= time.time() - latest.snapshot.at < _RECENT_SECONDS:
            return latest
        return await self.moment(with_requests=False)

    async def moment(self, *, with_requests: bool) -> Moment:
        """The proxy as it is now; ``with_requests``: each live request is shown."""
        step = int(time.time()) // STEP_SECONDS
        is_due = step != self._step
        collected = await self._workers.collect(with_requests=with_requests, with_totals=is_due)
        if is_due:
            self._step = step
            self._totals = self._totals.updated(collected.parts, step)
        dispatcher, events = self._dispatcher, self._workers.events
        fleet = dispatcher.fleet.snapshot()
        snapshot = Snapshot(time.time(), self._facts, fleet, dispatcher.requests_waiting, collected, self._sources())
        self._latest = Moment(snapshot, self._totals, step, events, events.changed)
        return self._latest
