"""The overview as a picture: for each trace, every policy's p99 relative to the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from simulation.report import Results

__all__ = ["svg"]

_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#999999",
    "#ff8800",
    "#000000",
    "#ff8800",
)
_LEFT, _TOP, _WIDTH, _ROW = 170, 50, 620, 22
_MOST = 100.0  # times the best; worse values are drawn at the edge
_TICKS = (1, 2, 5, 10, 20, 50, 100)


def svg(results: Results, figure: str = "p99") -> str:
    """A drawing with a row for each trace and a dot for each policy, on a logarithmic scale."""
    policies = list(next(iter(results.values())))
    colours = {policy: _COLOURS[number % len(_COLOURS)] for number, policy in enumerate(policies)}
    height = _TOP + _ROW * len(results) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 30}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_legend(colours),
        *_scale(height),
    ]
    for number, (name, by_policy) in enumerate(results.items()):
        best = min(figures[figure] for figures in by_policy.values())
        ratios = {policy: figures[figure] / best for policy, figures in by_policy.items()}
        lines += _drawn(name, ratios, colours, _TOP + _ROW * number + _ROW // 2)
    lines.append(f'<text x="{_LEFT}" y="{height - 4}">{figure} of the time to the first token, times the best</text>')
    return "\n".join([*lines, "</svg>", ""])


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    for number, (policy, colour) in enumerate(colours.items()):
        x, y = 10 + number % 5 * 160, 14 + number // 5 * 16
        yield f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/><text x="{x + 8}" y="{y}">{policy}</text>'


def _scale(height: int) -> Iterator[str]:
    for tick in _TICKS:
        x = _x(tick)
        yield f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{height - 30}" stroke="#dddddd"/>'
        yield f'<text x="{x}" y="{height - 18}" text-anchor="middle">{tick}</text>'


def _drawn(name: str, ratios: Mapping[str, float], colours: Mapping[str, str], y: int) -> Iterator[str]:
    yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{name}</text>'
    for policy, ratio in ratios.items():
        title = f"<title>{policy}: {ratio:.2f}</title>"
        yield f'<circle cx="{_x(ratio)}" cy="{y}" r="5" fill="{colours[policy]}" fill-opacity="0.8">{title}</circle>'


def _x(ratio: float) -> int:
    return round(_LEFT + _WIDTH * math.log(min(ratio, _MOST)) / math.log(_MOST))
