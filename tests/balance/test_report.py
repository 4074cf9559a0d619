"""Tables, documents and pictures of the results."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from simulation.catalogue import TRACES
from simulation.figures import figures_of, percentile
from simulation.fleet import run
from simulation.margins import margins
from simulation.plot import svg
from simulation.policies import POLICIES
from simulation.replica_report import replica_tables
from simulation.replica_traces import REPLICA_TRACES
from simulation.report import Results, document_with, tables, use_case_tables
from simulation.virtual_loop import virtual_loop

_NAME = "rag-4-llamacpp"


@pytest.fixture(name="results", scope="module")
def _results() -> Results:
    trace = replace(TRACES[_NAME], seconds=60.0, warm_up=10.0)
    names = ("random", "least_requests")
    return {_NAME: {name: figures_of([run(trace, POLICIES[name], 1)], 4).as_json() for name in names}}


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentile_is_the_smallest_value_that_enough_values_do_not_exceed(share: float, value: int) -> None:
    assert percentile(range(1, 101), share) == value


def test_the_best_policy_of_a_trace_is_bold(results: Results) -> None:
    rows = [line for line in tables(results, TRACES).splitlines() if line.startswith(f"| {_NAME} ")]

    assert len(rows) == 2
    assert all(row.count("**") == 2 for row in rows)


def test_margins_mark_the_figures_in_which_a_policy_is_behind() -> None:
    def figures(p50: float, wall: float) -> dict[str, float]:
        return {"p50": p50, "p90": 1.0, "p99": 1.0, "wall": wall, "read_tokens": 100}

    results = {"one": {"own": figures(0.5, 3.0), "rival": figures(1.0, 2.0), "third": figures(0.25, 4.0)}}

    *_, row, count = margins(results, "own", "rival").splitlines()

    assert row == "| one | 0.500 | 1.000 | 1.000 | **1.500** | 1.000 | **2.000** | 1.000 | 1.000 | **1.500** |"
    assert count == "| not behind, of 1 | 1 | 1 | 1 | 0 | 1 | 0 | 1 | 1 | 0 |"


def test_tables_of_use_cases_call_the_highest_hit_rate_the_best(results: Results) -> None:
    by_policy = {name: {**figures} for name, figures in results[_NAME].items()}
    by_policy["random"]["hit_rate"], by_policy["least_requests"]["hit_rate"] = 0.25, 0.75

    text = use_case_tables({_NAME: by_policy}, TRACES)

    assert f"| {_NAME} | 25% | **75%** |" in text
    assert text.count(f"| {_NAME} |") == 5


def test_a_document_keeps_the_text_outside_its_markers(results: Results, tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("above\n<!-- results: begin -->\nformer text\n<!-- results: end -->\nbelow\n")

    text = document_with(tables(results, TRACES), document)

    assert text.startswith("above\n<!-- results: begin -->\n")
    assert text.endswith("\n<!-- results: end -->\nbelow\n")
    assert "former text" not in text
    assert f"**{_NAME}**: 12 system prompts" in text


def test_a_picture_has_one_dot_per_policy(results: Results) -> None:
    drawn = ET.fromstring(svg(results))  # noqa: S314 -- trusted, generated here

    assert len(drawn.findall(".//{*}circle/{*}title")) == 2


def test_asyncio_sleeps_end_in_order_without_real_waiting() -> None:
    loop, seen = virtual_loop(), list[tuple[str, float]]()

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, loop.time()))

    tasks = [
        loop.create_task(sleeper(name, seconds)) for name, seconds in (("b", 2000.0), ("a", 1000.0), ("c", 2000.0))
    ]
    loop.run()

    assert seen == [("a", 1000.0), ("b", 2000.0), ("c", 2000.0)]
    assert all(task.done() for task in tasks)


def test_tables_of_replicas_have_a_row_for_each_number_of_them(results: Results) -> None:
    figures = {**results[_NAME]["random"]} | {"p50": 0.25, "p99": 12.5, "hit_rate": 0.5, "unevenness": 1.25}
    text = replica_tables({f"few-16-vllm-x{count}": {"random": figures} for count in (1, 8)}, REPLICA_TRACES)

    assert text.count("**few-16-vllm**") == 1
    assert "| 1 | 0.250 | 12.5 | 50% | 1.25 |\n| 8 | 0.250 | 12.5 | 50% | 1.25 |" in text
