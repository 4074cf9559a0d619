#!/usr/bin/env python3
"""Publishes the figures of a run in the documentation: benchmarks/report.py [FILE.json]

Writes the tables into docs/performance.md, between its two markers, and the pictures into docs/images. The default
file is docs/performance.json, the published run; any other file is copied there, so that page and figures agree.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from suite.figures import Figures
from suite.pictures import PICTURES, picture
from suite.results import Results, read_results
from suite.tables import claims_table, failures_list, result_tables

_DOCS = Path(__file__).parents[1] / "docs"
_PAGE, _PUBLISHED, _IMAGES = _DOCS / "performance.md", _DOCS / "performance.json", _DOCS / "images"
_BEGIN, _END = "<!-- begin measured -->", "<!-- end measured -->"


def main() -> None:
    if len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    file = Path(sys.argv[1]) if len(sys.argv) == 2 else _PUBLISHED
    results = read_results(file)
    images = _drawn(Figures(results))
    _PAGE.write_text(with_measured(_PAGE.read_text(), measured(results, images)))
    if file.resolve() != _PUBLISHED.resolve():
        shutil.copyfile(file, _PUBLISHED)
    print(f"written: {_PAGE}, {_PUBLISHED}, {_IMAGES}; {len(results.failures)} measurements failed")


def with_measured(page: str, text: str) -> str:
    """The page with ``text`` between its markers.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"no {_BEGIN} … {_END} on the page")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


_ABOUT_CLAIMS = "A limit is a goal. Where it *does not hold*, this run missed the goal; the figure shows by how much."


def measured(results: Results, images: list[str]) -> str:
    """The generated part of the page."""
    figures = Figures(results)
    parts = [
        "### Claims and limits",
        _ABOUT_CLAIMS,
        claims_table(figures),
        "### Figures",
        "\n".join(f"![{name.removesuffix('.svg').replace('-', ' ')}](images/{name})" for name in images),
        result_tables(figures),
        f"{_conditions(results.about, results.rounds)} All figures: [`{_PUBLISHED.name}`]({_PUBLISHED.name}).",
    ]
    if results.failures:
        parts += ["Without a figure:", failures_list(results.failures)]
    return "\n\n".join(part for part in parts if part)


def _drawn(figures: Figures) -> list[str]:
    """Write the pictures that have figures, and return their names."""
    drawn = {name: picture(figures, figure) for name, figure in PICTURES.items()}
    _IMAGES.mkdir(exist_ok=True)
    for name, image in drawn.items():
        if image is not None:
            (_IMAGES / name).write_text(image)
    return [name for name, image in drawn.items() if image is not None]


def _conditions(about: dict[str, Any], rounds: int) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    pace = "" if about["pace"] == 1 else f" **Shortened loads (pace {about['pace']}): not for comparison.**"
    return (
        f"{about['date']}, commit {about['commit']}, medians of {rounds} round(s); {about['cores']} cores "
        f"({about['processor']}), {about['memory_bytes'] / 1e9:.0f} GB, {about['kernel']}; Python {about['python']} "
        f"{about['python_build']}; {versions}.{pace}"
    )


if __name__ == "__main__":
    main()
