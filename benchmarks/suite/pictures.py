"""Bar charts as hand-written SVG, which needs no library and suits both light and dark pages."""

from __future__ import annotations

import math
from html import escape

from suite.figures import FIGURES, Figures
from suite.targets import DIRECT, OURS_NAME

__all__ = ["PICTURES", "bar_chart", "picture"]

_WIDTH, _LABEL_WIDTH, _VALUE_WIDTH = 720, 130, 90
_BAR_HEIGHT, _ROW_HEIGHT, _TOP = 18, 26, 44
_LARGEST_ON_A_LINE = 40  # ratio of the largest to the smallest value; beyond it, a linear scale makes short bars equal

# Figures by file name; each picture has one bar per target.
PICTURES = {
    "cpu-per-request.svg": "cpu-1kb",
    "cpu-per-event.svg": "cpu-event",
    "latency.svg": "latency-1-p50",
    "memory.svg": "memory-1000",
    "most-streams.svg": "most-streams",
}

_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; }
  .note { font-size: 11px; fill: #59636e; }
  rect { fill: #8c959f; }
  .ours { fill: #1f6feb; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .note { fill: #9198a1; }
    rect { fill: #6e7681; }
    .ours { fill: #4493f8; }
  }
"""


def picture(figures: Figures, name: str) -> str | None:
    """The picture with this name; ``None`` if no target has its figure."""
    values = {target: figures.median(name, target) for target in figures.targets if target != DIRECT}
    known = {target: value for target, value in values.items() if value is not None and value > 0}
    return bar_chart(FIGURES[name].title, known) if known else None


def bar_chart(title: str, values: dict[str, float]) -> str:
    """One bar per name; all values must be positive."""
    largest, smallest = max(values.values()), min(values.values())
    is_logarithmic = largest > _LARGEST_ON_A_LINE * smallest
    rows = [
        _row(_TOP + number * _ROW_HEIGHT, name, value, _share(value, smallest, largest, is_logarithmic))
        for number, (name, value) in enumerate(values.items())
    ]
    height = _TOP + len(values) * _ROW_HEIGHT + 6
    scale = " (logarithmic scale)" if is_logarithmic else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n'
        f'<text class="title" x="8" y="20">{escape(title)}<tspan class="note">{scale}</tspan></text>\n'
        + "\n".join(rows)
        + "\n</svg>\n"
    )


def _share(value: float, smallest: float, largest: float, is_logarithmic: bool) -> float:
    """Length as a fraction of the longest bar. On a logarithmic scale, the smallest value gets a tenth."""
    if not is_logarithmic:
        return value / largest
    return 0.1 + 0.9 * math.log(value / smallest) / math.log(largest / smallest)


def _row(top: float, name: str, value: float, share: float) -> str:
    kind = ' class="ours"' if name == OURS_NAME else ""
    width = share * (_WIDTH - _LABEL_WIDTH - _VALUE_WIDTH)
    baseline = top + 14
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return (
        f'<text x="{_LABEL_WIDTH - 8}" y="{baseline}" text-anchor="end">{escape(name)}</text>'
        f'<rect{kind} x="{_LABEL_WIDTH}" y="{top}" width="{width:.1f}" height="{_BAR_HEIGHT}" rx="2"/>'
        f'<text x="{_LABEL_WIDTH + width + 6:.1f}" y="{baseline}">{number}</text>'
    )
