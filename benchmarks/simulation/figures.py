"""Figures of a run: time to first token, cache hits, and the distribution of work."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from simulation.fleet import Outcome, Run

__all__ = ["Figures", "figures_of", "percentile"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one trace and policy over all seeds; times in seconds.

    Attributes:
        requests: number of requests that count.
        p50, p90, p99, mean: time from a request's arrival to its first token.
        p99_of_seeds: p99 for each seed alone, which shows the influence of chance.
        whole_mean: mean time to the last token.
        wall: from the start to the last answer's end, the mean of all seeds.
        hit_rate: fraction of prompt tokens that engines report as cached.
        read_tokens: prompt tokens that engines did not have cached.
        busiest_share: prompt tokens of the busiest backend, relative to the mean.
        most_in_engine, most_in_replica: longest queue in one engine, and in one replica.
        unevenness: requests of the busiest engine, relative to the mean of all engines; the mean over time.
        misplaced_share: fraction of requests that came to an engine without a free slot while another one had one.
    """

    requests: int
    p50: float
    p90: float
    p99: float
    mean: float
    p99_of_seeds: tuple[float, ...]
    whole_mean: float
    wall: float
    hit_rate: float
    read_tokens: int
    busiest_share: float
    most_in_engine: int
    most_in_replica: int
    unevenness: float
    misplaced_share: float

    def as_json(self) -> dict[str, object]:
        """Rounded values, for readable tables."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def figures_of(runs: Sequence[Run], backends: int) -> Figures:
    """Figures over ``runs``, which differ only in their seeds."""
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    waits = sorted(outcome.first_token for outcome in outcomes)
    prompts = sum(outcome.prompt_tokens for outcome in outcomes)
    cached = sum(outcome.cached_tokens for outcome in outcomes)
    return Figures(
        len(outcomes),
        percentile(waits, 0.5),
        percentile(waits, 0.9),
        percentile(waits, 0.99),
        sum(waits) / len(waits),
        tuple(percentile(sorted(outcome.first_token for outcome in run.outcomes), 0.99) for run in runs),
        sum(outcome.whole for outcome in outcomes) / len(outcomes),
        sum(max(outcome.arrived_at + outcome.whole for outcome in run.outcomes) for run in runs) / len(runs),
        cached / prompts,
        prompts - cached,
        max(_busiest_share(run.outcomes) for run in runs) * backends,
        max(run.most_in_engine for run in runs),
        max(run.most_in_replica for run in runs),
        sum(run.unevenness for run in runs) / len(runs),
        sum(outcome.was_misplaced for outcome in outcomes) / len(outcomes),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest item that at least the fraction ``share`` of all items do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _busiest_share(outcomes: Sequence[Outcome]) -> float:
    read = Counter[int]()
    for outcome in outcomes:
        read[outcome.backend] += outcome.prompt_tokens
    return max(read.values()) / sum(read.values())


def _rounded(value: object) -> object:
    if isinstance(value, tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
