"""The published page agrees with the results file."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from report import measured, with_measured
from suite.figures import Figures
from suite.pictures import PICTURES, bar_chart
from suite.results import Failure, Results, read_results
from suite.tables import claims_table, failures_list, figures_table

DOCS = Path(__file__).parents[2] / "docs"


def two_targets() -> Results:
    def report(cpu_us: float) -> dict[str, object]:
        return {"cpu_us": [cpu_us], "requests": 10, "seconds": 1.0}

    return Results({}, 1, {"requests-1kb": {"inference-proxy": [report(500)], "vllm-router": [report(1_000)]}})


def test_results_survive_writing_and_reading_a_file(tmp_path: Path) -> None:
    results = Results({"pace": 1.0, "versions": {"nginx": "1.22.1"}}, 2)
    results.add(1, "latency-1", "nginx", {"p50_us": 3.5})
    results.failures.append(Failure(0, "latency-1", "nginx", "did not start"))
    file = tmp_path / "run.json"

    results.write(file, claims=[])

    assert read_results(file) == results
    assert results.reports == {"latency-1": {"nginx": [None, {"p50_us": 3.5}]}}
    assert list(tmp_path.iterdir()) == [file]


def test_a_table_omits_columns_without_figures() -> None:
    table = figures_table(Figures(two_targets()), ("cpu-1kb", "cpu-20kb"))

    assert table.splitlines() == [
        "|  | CPU per request, 1 KB (µs) |",
        "| --- | --- |",
        "| inference-proxy | 50 |",
        "| vllm-router | 100 |",
    ]


def test_claims_are_checked_against_the_figures() -> None:
    rows = claims_table(Figures(two_targets())).splitlines()

    assert "| CPU per request, 1 KB, relative to vllm-router | ≤ 0.75 | 0.5 | holds |" in rows
    assert "| CPU per request, 1 KB, relative to smg | ≤ 0.45 | - | not measured |" in rows


def test_a_failure_takes_one_line() -> None:
    assert failures_list([Failure(0, "fleet-2", "nginx", "no\n  port")]) == "* round 1, fleet-2, nginx: no port"


def test_bar_lengths_are_proportional_to_their_values() -> None:
    svg = ET.fromstring(bar_chart("CPU <µs>", {"a": 10.0, "b": 5.0}))  # noqa: S314 - trusted, generated here
    widths = [float(bar.attrib["width"]) for bar in svg.iter("{http://www.w3.org/2000/svg}rect")]

    assert svg.attrib["aria-label"] == "CPU <µs>"
    assert widths[0] == 2 * widths[1]


def test_values_far_apart_get_a_labelled_logarithmic_scale() -> None:
    assert "logarithmic" in bar_chart("CPU", {"a": 1.0, "b": 1_000.0})
    assert "logarithmic" not in bar_chart("CPU", {"a": 1.0, "b": 10.0})


def test_only_the_text_between_the_markers_is_replaced() -> None:
    page = "before\n<!-- begin measured -->\nold\n<!-- end measured -->\nafter\n"

    assert with_measured(page, "new") == "before\n<!-- begin measured -->\n\nnew\n\n<!-- end measured -->\nafter\n"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="begin measured"):
        with_measured("no markers here", "new")


def test_the_published_page_matches_the_published_figures() -> None:
    file = DOCS / "performance.json"
    if not file.exists():
        pytest.skip("no run has been published")
    page = (DOCS / "performance.md").read_text()
    images = [name for name in PICTURES if (DOCS / "images" / name).exists()]

    assert with_measured(page, measured(read_results(file), images)) == page
