"""The search for the most streams that a target can carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from load.generator import ENDLESS, EVENT_PERIOD_US, Load, Report

__all__ = ["LEAST_DELIVERED", "LONGEST_LAG_US", "delivered", "largest_that", "most_streams", "probing"]

LEAST_DELIVERED = 0.98
LONGEST_LAG_US = 250_000
_TRIES = 2  # so that one bad second of the machine is not decisive


def delivered(report: Report) -> float:
    """The fraction of events due within the measured time that arrived within it."""
    due: float = report["connections"] * report["seconds"] * 1e6 / EVENT_PERIOD_US
    return float(report["events"] / due)


def largest_that(sizes: Sequence[int], holds: Callable[[int], bool]) -> int:
    """The largest size for which ``holds`` is true, or 0; it is assumed to be true for all smaller sizes as well."""
    below, above = -1, len(sizes)
    while above - below > 1:
        middle = (below + above) // 2
        if holds(sizes[middle]):
            below = middle
        else:
            above = middle
    return sizes[below] if below >= 0 else 0


def probing(streams: int) -> Load:
    return Load(streams, tokens=ENDLESS, warm_up_seconds=max(1.5, streams / 500), seconds=2)


def most_streams(run: Callable[[Load], Report], sizes: Sequence[int]) -> Report:
    """``most``: the largest size that kept up; and the reports of all sizes tried."""
    probes: list[Report] = []

    def keeps_up(streams: int) -> bool:
        for _ in range(_TRIES):
            try:
                probe = run(probing(streams))
            except RuntimeError as error:  # failing under the load is a result, too
                probes.append({"connections": streams, "error": str(error)[-300:]})
                continue
            probes.append(probe)
            if delivered(probe) >= LEAST_DELIVERED and probe["p99_us"] < LONGEST_LAG_US:
                return True
        return False

    return {"most": largest_that(sizes, keeps_up), "probes": probes}
