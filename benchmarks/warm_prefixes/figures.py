"""Figures of one run, and of all its repetitions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from suite.figures import Spread
from warm_prefixes.play import Served

__all__ = ["ceiling", "figures_of_run", "spread_of"]


def figures_of_run(
    served: Sequence[Served], seconds: float, answers: Sequence[float], system_tokens: int
) -> dict[str, Any]:
    """The figures of one run, for the JSON file.

    Args:
        answers: number of answers by engine.
        system_tokens: tokens of a group's shared system prompt.
    """
    first = sorted(one.first_seconds for one in served)
    prompt_tokens = sum(one.answer.prompt_tokens for one in served)
    failures = Counter(failure for one in served for failure in one.failures)
    return {
        "requests": len(served),
        "hit_rate": sum(one.answer.cached_tokens for one in served) / prompt_tokens,
        "ceiling": ceiling(served, system_tokens),
        "wall_seconds": seconds,
        "first_p50": _percentile(first, 0.5),
        "first_p90": _percentile(first, 0.9),
        "first_p99": _percentile(first, 0.99),
        "failures": failures.total(),
        "failure_kinds": dict(failures),
        "busiest_share": max(answers) / sum(answers),
        "answers": list(answers),
        "prompt_tokens": prompt_tokens,
        "answer_tokens": fmean(one.answer.answer_tokens for one in served),
    }


def ceiling(served: Iterable[Served], system_tokens: int) -> float:
    """Upper bound of the hit rate: that of a single unlimited cache that holds every earlier prompt and answer."""
    whole = {(one.conversation.number, one.turn): one.answer for one in served}
    seen: set[int] = set()
    known = total = 0
    for one in served:
        group = one.conversation.group
        total += one.answer.prompt_tokens
        if one.turn > 0:
            before = whole[one.conversation.number, one.turn - 1]
            known += before.prompt_tokens + before.answer_tokens
        elif group in seen:
            known += system_tokens
        if group is not None:
            seen.add(group)
    return known / total


def spread_of(runs: Iterable[dict[str, Any] | None], figure: str) -> Spread | None:
    """The figure's spread over all runs; ``None`` if no run has it."""
    values = tuple(float(run[figure]) for run in runs if run is not None)
    return Spread(values) if values else None


def _percentile(rising: Sequence[float], part: float) -> float:
    """The smallest value that at least this fraction of the values do not exceed."""
    return rising[max(0, math.ceil(part * len(rising)) - 1)]
