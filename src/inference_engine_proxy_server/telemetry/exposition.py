"""Prometheus' text format, version 0.0.4.

Families are written directly. A general library takes five microseconds for each sample, which is too much for tens of
thousands of them.

Source: "Exposition formats" in the documentation of Prometheus, read November 2026.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from inference_engine_proxy_server.telemetry.histogram import Histogram

__all__ = ["Families", "Labels", "Sample", "family", "histogram_family"]

Families = Callable[[], Iterator[str]]
"""Writes whole families, in pieces of text that take at most about a millisecond each."""

Sample = tuple[str, float]
"""Labels as :class:`Labels` formats them, and a value."""

_SAMPLES = 512  # of one piece of text
_HISTOGRAMS = 32  # of one piece of text
_NOT_FINITE = {math.inf: "+Inf", -math.inf: "-Inf"}
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Labels:
    """Formats the labels of samples.

    Args:
        worker: number of the worker, a label of every sample; ``None`` for a process without siblings.
    """

    def __init__(self, worker: int | None = None) -> None:
        self._origin = "" if worker is None else f'worker="{worker}"'

    def of(self, **values: str) -> str:
        """The labels of a sample with these values, by name; the empty text if there are none."""
        pairs = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in values.items()]
        inner = ",".join([self._origin, *pairs] if self._origin else pairs)
        return f"{{{inner}}}" if inner else ""


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """A family of counters or gauges.

    Args:
        name: of the family, which is that of its samples.
        kind: ``counter`` or ``gauge``.
        text: says what it is; one line without a backslash.
        samples: in any order.
    """
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    rest = iter(samples)
    while lines := [f"{name}{labels} {_number(value)}\n" for labels, value in islice(rest, _SAMPLES)]:
        yield "".join(lines)


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else _NOT_FINITE.get(value, "NaN")


def histogram_family(name: str, text: str, samples: Iterable[tuple[str, Histogram]]) -> Iterator[str]:
    """A family of histograms; ``samples`` are their labels, as above, and the histograms."""
    yield f"# HELP {name} {text}\n# TYPE {name} histogram\n"
    rest = iter(samples)
    while pieces := [histogram.lines(name, labels) for labels, histogram in islice(rest, _HISTOGRAMS)]:
        yield "".join(pieces)
