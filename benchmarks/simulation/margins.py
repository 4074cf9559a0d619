"""How far one policy is ahead of the others, for each trace and figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simulation.report import Results

__all__ = ["margins"]

_FIGURES = ("p50", "p90", "p99", "wall", "read_tokens")
"""Less is better for each of them."""


def margins(results: Results, policy: str, rival: str) -> str:
    """A table of ``policy``'s figures, divided by ``rival``'s and by those of the best other policy.

    Figures above 1.00 are bold: there, ``policy`` is behind. The best other policy differs from figure to figure. The
    tokens read are compared with ``rival`` only, because a policy that leaves most engines idle reads least.
    """
    of_rival = [f"{figure} / {rival}" for figure in _FIGURES]
    of_best = [f"{figure} / best other" for figure in _FIGURES[:-1]]
    lines = [
        f"{policy} relative to {rival}, and to the best other policy for each figure; bold: behind",
        "",
        _row(["trace", *of_rival, *of_best]),
        "|---" + "|--:" * (len(of_rival) + len(of_best)) + "|",
    ]
    ratios = {name: list(_ratios(by_policy, policy, rival)) for name, by_policy in results.items()}
    lines += [_row([name, *map(_cell, of_trace)]) for name, of_trace in ratios.items()]
    not_behind = [
        sum(of_trace[column] <= 1.0 for of_trace in ratios.values()) for column in range(len(_FIGURES) * 2 - 1)
    ]
    lines.append(_row([f"not behind, of {len(ratios)}", *map(str, not_behind)]))
    return "\n".join(lines) + "\n"


def _ratios(by_policy: Mapping[str, Mapping[str, Any]], policy: str, rival: str) -> Iterator[float]:
    own = by_policy[policy]
    for figure in _FIGURES:
        yield own[figure] / by_policy[rival][figure]
    others = [figures for name, figures in by_policy.items() if name != policy]
    for figure in _FIGURES[:-1]:
        yield own[figure] / min(figures[figure] for figures in others)


def _cell(ratio: float) -> str:
    return f"**{ratio:.3f}**" if ratio > 1.0 else f"{ratio:.3f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
