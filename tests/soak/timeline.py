"""Records which backend was disturbed, how and when; failed requests are judged by it. Pure, except for the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["BREAKING", "Disturbance", "Timeline"]

BREAKING = frozenset({"kill", "reset", "refuse", "malformed"})
"""Faults that break connections."""

_SETTLE_SECONDS = 4.0  # until all effects are over: a poll, its deadline, and requests in flight
_KEPT_SECONDS = 180.0  # longer than any request


@dataclass(slots=True)
class Disturbance:
    """One fault of one backend, or its planned absence from the fleet; times of the monotonic clock."""

    backend: str
    kind: str
    begun_at: float
    over_at: float = math.inf


class Timeline:
    """All faults except those that ended long ago."""

    def __init__(self) -> None:
        self._disturbances: list[Disturbance] = []

    @contextmanager
    def disturbed(self, backend: str, kind: str) -> Iterator[None]:
        """A context in which ``backend`` is disturbed, plus the time until the effects are over."""
        one = Disturbance(backend, kind, time.monotonic())
        self._disturbances = [old for old in self._disturbances if old.over_at > one.begun_at - _KEPT_SECONDS]
        self._disturbances.append(one)
        try:
            yield
        finally:
            one.over_at = time.monotonic() + _SETTLE_SECONDS

    def during(self, began: float, ended: float) -> list[Disturbance]:
        """The faults between ``began`` and ``ended``."""
        return [one for one in self._disturbances if one.begun_at <= ended and one.over_at >= began]

    def is_disturbed(self, backend: str) -> bool:
        """Whether a fault of ``backend`` is active now; the time afterwards does not count."""
        return any(one.backend == backend and one.over_at == math.inf for one in self._disturbances)
