"""Counts of durations in buckets, so that percentiles of several workers and times can be computed together."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["BOUNDS", "Counts", "add", "percentile"]

Counts = dict[int, int]
"""Number of durations, by bucket. Bucket ``n`` ends at ``_SHORTEST_SECONDS * _GROWTH ** n``."""

_SHORTEST_SECONDS = 0.001
_GROWTH = 1.2  # so that a percentile is wrong by at most a tenth
_LOG_GROWTH = math.log(_GROWTH)
BOUNDS = tuple(_SHORTEST_SECONDS * _GROWTH**bucket for bucket in range(100))
"""The end of each bucket in seconds, but for the last one, which has no end; the longest is about a day."""


def add(counts: Counts, more: Mapping[int, int]) -> None:
    """Add ``more`` to ``counts``."""
    for bucket, count in more.items():
        counts[bucket] = counts.get(bucket, 0) + count


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The duration in seconds that ``share`` of all do not exceed; ``None`` without any.

    Within a bucket, durations are taken to be spread evenly on a logarithmic scale.
    """
    rank = share * sum(counts.values())
    below = 0
    for bucket in sorted(counts):
        count = counts[bucket]
        if count and below + count >= rank:
            inside = max(0.0, rank - below) / count
            return round(_SHORTEST_SECONDS * math.exp((bucket - 1 + inside) * _LOG_GROWTH), 4)
        below += count
    return None
