"""The search for the most streams that a target can carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from load.generator import ENDLESS, EVENT_PERIOD_US, Load, Report

__all__ = ["LEAST_DELIVERED", "LONGEST_LAG_US", "delivered", "largest_that", "most_streams", "probing"]

LEAST_DELIVERED = 0.98
LONGEST_LAG_US = 250_000
_TRIES = 2  # one bad second of the machine does not decide


def delivered(report: Report) -> float:
    """The share of the events due within the measured time that arrived in it."""
    due: float = report["connections"] * report["seconds"] * 1e6 / EVENT_PERIOD_US
    return float(report["events"] / due)


def largest_that(sizes: Sequence[int], holds: Callable[[int], bool]) -> int:
    """The largest size that holds; 0 where none does. What holds for a size is taken to hold for all below it."""
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
    """``most`` of the sizes that kept up, and the reports of all that were tried."""
    probes: list[Report] = []

    def keeps_up(streams: int) -> bool:
        for _ in range(_TRIES):
            try:
                probe = run(probing(streams))
            except RuntimeError as error:  # it gave up under the load: that is an answer, too
                probes.append({"connections": streams, "error": str(error)[-300:]})
                continue
            probes.append(probe)
            if delivered(probe) >= LEAST_DELIVERED and probe["p99_us"] < LONGEST_LAG_US:
                return True
        return False

    return {"most": largest_that(sizes, keeps_up), "probes": probes}
