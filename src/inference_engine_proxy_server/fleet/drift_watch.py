"""Compares the replicas of each model when a backend reports something new about its models."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.difference import Difference
from inference_engine_proxy_server.fleet.drift import Replica, differences, replicas_of
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.telemetry.journal import Journal, Severity

__all__ = ["DriftWatch"]

logger = logging.getLogger(__name__)

_PAUSE = 20  # times the duration of a long comparison: while a large fleet starts, they take 5 % of the time
_SHORT_SECONDS = 0.005


class DriftWatch(FleetObserver):
    """Keeps the differences of a fleet up to date, and notes what appears and disappears.

    A backend that is down keeps the facts of its last report.

    Args:
        fleet: gets the differences.
        journal: gets an event for each.
    """

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self._fleet = fleet
        self._journal = journal
        self._seen: dict[Backend, tuple[object, list[Replica]]] = {}  # the facts, and what is made of them
        self._is_outdated = False
        self._rests_until = 0.0
        fleet.subscribe(self)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        self._seen = {backend: self._seen[backend] for backend in backends if backend in self._seen}
        self._is_outdated = True
        self._compare_if_due()

    def on_reported(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        serving, config = backend.serving, backend.config
        facts = (serving.fingerprints, serving.contexts, serving.model_ids, config.models, config.may_differ)
        is_new = backend not in self._seen or facts != self._seen[backend][0]
        if is_new and backend in self._fleet.backends:  # a last report may come after it has left
            self._seen[backend] = facts, list(replicas_of(backend.url, backend.engine, serving, config))
            self._is_outdated = True
        self._compare_if_due()

    def _compare_if_due(self) -> None:
        clock = self._fleet.clock
        if not self._is_outdated or clock() < self._rests_until:
            return
        began_at = clock()
        known = [self._seen[backend][1] for backend in self._fleet.backends if backend in self._seen]
        found = differences(replica for replicas in known for replica in replicas)
        before, self._fleet.differences = self._fleet.differences, found
        self._is_outdated = False
        self._note(before, found)
        seconds = clock() - began_at
        self._rests_until = clock() + (_PAUSE * seconds if seconds > _SHORT_SECONDS else 0.0)

    def _note(self, before: Sequence[Difference], found: Sequence[Difference]) -> None:
        names = {backend.url: backend.config.name for backend in self._fleet.backends}
        for difference in found:
            if difference not in before:
                text = difference.sentence(names)
                logger.log(logging.WARNING if difference.is_warning else logging.INFO, "%s %s", text, difference.remedy)
                severity: Severity = "warning" if difference.is_warning else "info"
                self._journal.note("drift", f"{text} {difference.remedy}", severity=severity)
        still = {(difference.model, difference.aspect) for difference in found}
        for difference in before:
            if (difference.model, difference.aspect) not in still:
                text = f"The backends of {difference.model} no longer differ in their {difference.aspect.value}."
                logger.info("%s", text)
                self._journal.note("drift", text)
