"""A histogram that takes observations in batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["INTER_TOKEN_BOUNDS", "SECONDS_BOUNDS", "TOKEN_BOUNDS", "Histogram"]

SECONDS_BOUNDS = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
    163.84,
    327.68,
)
"""Those of OpenTelemetry's conventions for generative AI, continued to cover slow local models."""

INTER_TOKEN_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Those of the conventions for the time per output token, in seconds, and shorter ones for fast engines."""

TOKEN_BOUNDS = tuple(4**power for power in range(12))
"""Those of the conventions for tokens, up to four million."""


class Histogram:
    """Counts observations.

    Args:
        bounds: upper bounds of the buckets, ascending, without the infinite one.
    """

    __slots__ = ("_below", "_count", "_total", "_zeros", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self._below = [0] * len(bounds)  # observations up to each bound
        self._count = 0
        self._zeros = 0  # observations that are not in _below
        self._total = 0.0

    def add(self, observations: list[float]) -> None:
        """Add a batch, which is sorted in place. One search for each bound costs less than one for each observation."""
        if not observations:
            return
        self._count += len(observations)
        if not any(observations):  # as of the queue, in which most requests do not wait
            self._zeros += len(observations)
            return
        observations.sort()
        below = self._below
        for at, bound in enumerate(self.bounds):
            below[at] += bisect_right(observations, bound)
        self._total += sum(observations)

    def merge(self, other: Histogram) -> None:
        """Add the observations of ``other``, which has the same bounds."""
        self._below = [one + another for one, another in zip(self._below, other._below, strict=True)]
        self._count += other._count
        self._zeros += other._zeros
        self._total += other._total

    def lines(self, name: str, labels: str) -> str:
        """The samples of one histogram in Prometheus' text format.

        Args:
            name: of the family.
            labels: as :class:`~.exposition.Labels` formats them, at least one.
        """
        return _template(name, labels, self.bounds) % (
            *(below + self._zeros for below in self._below), self._count, self._total, self._count,
        )  # fmt: skip


@lru_cache(maxsize=4096)  # a few kilobytes each, for the histograms of 400 models
def _template(name: str, labels: str, bounds: Sequence[float]) -> str:
    labels = labels.replace("%", "%%")
    buckets = [f'{name}_bucket{labels[:-1]},le="{bound}"}} %d\n' for bound in (*bounds, "+Inf")]
    return "".join([*buckets, f"{name}_sum{labels} %r\n", f"{name}_count{labels} %d\n"])
