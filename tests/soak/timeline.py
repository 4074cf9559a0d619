"""Which backend was disturbed, how, and when: what a failed request is judged by. Pure, but for the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["BREAKING", "Disturbance", "Timeline"]

BREAKING = frozenset({"kill", "reset", "refuse", "malformed"})
"""Faults that break connections."""

_SETTLE_SECONDS = 4.0  # until everybody knows that it is over: a refresh, its deadline, and what was on its way
_KEPT_SECONDS = 180.0  # longer than any request


@dataclass(slots=True)
class Disturbance:
    """One fault of one backend, or its being out of the fleet on purpose; by the monotonic clock."""

    backend: str
    kind: str
    begun_at: float
    over_at: float = math.inf


class Timeline:
    """All of them, those that are long over excepted."""

    def __init__(self) -> None:
        self._disturbances: list[Disturbance] = []

    @contextmanager
    def disturbed(self, backend: str, kind: str) -> Iterator[None]:
        """``backend`` is disturbed as long as this is entered, and until that has settled."""
        one = Disturbance(backend, kind, time.monotonic())
        self._disturbances = [old for old in self._disturbances if old.over_at > one.begun_at - _KEPT_SECONDS]
        self._disturbances.append(one)
        try:
            yield
        finally:
            one.over_at = time.monotonic() + _SETTLE_SECONDS

    def during(self, began: float, ended: float) -> list[Disturbance]:
        """What happened from ``began`` to ``ended``."""
        return [one for one in self._disturbances if one.begun_at <= ended and one.over_at >= began]

    def is_disturbed(self, backend: str) -> bool:
        """Whether something happens to it now; what only settles does not count."""
        return any(one.backend == backend and one.over_at == math.inf for one in self._disturbances)
