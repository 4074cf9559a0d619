"""Reads a few metrics from a page in the Prometheus text format, without parsing the rest.

An engine's page has thousands of lines (vLLM 0.32.0: 48 KB for one idle model) of which a handful matter, and every
backend's page is read every few seconds. The page is therefore searched for each requested name, and only lines that
begin with one are parsed. Types and help texts are ignored.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, "Text-based format".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["Sample", "samples", "sum_samples"]

# After a metric's name: {labels}, a value, and a timestamp or an exemplar, both ignored. Possessive quantifiers keep a
# malicious page from causing catastrophic backtracking.
_AFTER_NAME = re.compile(
    rb"""[ \t]*+ (?P<labels> \{ (?: [^"}] | "(?: [^"\\] | \\. )*+" )*+ \} )?+
         [ \t]*+ (?P<value> [-+.\w]++ ) (?: [ \t]++ [-+.\deE]++ )?+ (?: [ \t]++ \# .*+ )?+ [ \t\r]*+""",
    re.VERBOSE,
)


class Sample(NamedTuple):
    """One line of a page; ``labels`` as written, braces included, or empty."""

    labels: bytes
    value: float


def samples(page: bytes, name: str) -> Iterator[Sample]:
    """Every well-formed sample of exactly this metric, in the page's order; malformed lines are skipped.

    ``value`` may be NaN or infinite.
    """
    wanted = name.encode()
    start = 0
    while (found := page.find(wanted, start)) >= 0:
        end = page.find(b"\n", found)
        end = len(page) if end < 0 else end
        indent = page[page.rfind(b"\n", 0, found) + 1 : found]
        # Anything but blanks before the name means a comment, or a longer name that ends with this one.
        if not indent.strip(b" \t"):
            sample = _parse(page[found + len(wanted) : end])
            if sample is not None:
                yield sample
        start = end + 1


def sum_samples(page: bytes, names: Iterable[str]) -> dict[str, float]:
    """The sum of each metric over all its label sets; a metric without a well-formed sample is absent.

    A sum may be NaN or infinite, like a sample.
    """
    sums: dict[str, float] = {}
    for name in names:
        for sample in samples(page, name):
            sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def _parse(after_name: bytes) -> Sample | None:
    # Otherwise the rest of a longer name would pass for a value.
    if after_name[:1] not in (b"{", b" ", b"\t"):
        return None
    match = _AFTER_NAME.fullmatch(after_name)
    if match is None or b"_" in match["value"]:  # Python accepts 1_000 as a number, the format does not
        return None
    try:
        return Sample(match["labels"] or b"", float(match["value"]))
    except ValueError:
        return None
