"""Figures, ratios and claims follow from the reports of a run, and are never compared across rounds."""

from __future__ import annotations

from typing import Any

import pytest

from suite.claims import Claim, claims_as_json
from suite.figures import FIGURES, Figures
from suite.results import Results
from suite.steps import STEPS

OURS, PEER = "inference-proxy", "vllm-router"


def results(rounds: int, **of_steps: dict[str, list[dict[str, Any] | None]]) -> Results:
    return Results({}, rounds, {step.replace("_", "-"): reports for step, reports in of_steps.items()})


def report(cpu_us: float, requests: int = 1, **more: Any) -> dict[str, Any]:
    return {"cpu_us": [cpu_us], "requests": requests, "seconds": 2.0} | more


def test_every_figure_belongs_to_an_existing_step() -> None:
    assert {figure.step for figure in FIGURES.values()} <= set(STEPS)


def test_cpu_per_request_sums_all_processes() -> None:
    taken = results(1, requests_1kb={OURS: [report(0, 10) | {"cpu_us": [300.0, 700.0]}]})

    assert Figures(taken).median("cpu-1kb", OURS) == 100


def test_capacity_is_the_rate_that_the_busiest_process_reaches_with_a_full_core() -> None:
    taken = results(1, workers_2={OURS: [report(0, 1_000) | {"cpu_us": [0.0, 60_000.0, 40_000.0]}]})

    assert Figures(taken).median("workers-2-capacity", OURS) == pytest.approx(1_000 / 0.06)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    taken = results(
        3, requests_1kb={OURS: [report(10), report(40), report(9)], PEER: [report(20), report(50), report(10)]}
    )

    ratio = Figures(taken).ratio("cpu-1kb", PEER)

    assert ratio is not None
    assert ratio.values == (0.5, 0.8, 0.9)
    assert str(ratio) == "0.80 (0.50-0.90)"


def test_a_round_without_one_of_the_two_figures_is_not_compared() -> None:
    taken = results(2, requests_1kb={OURS: [None, report(40)], PEER: [report(20), report(50)]})
    figures = Figures(taken)

    assert figures.ratio("cpu-1kb", PEER) is not None
    assert figures.ratio("cpu-1kb", PEER).values == (0.8,)  # type: ignore[union-attr]
    assert figures.ratio("cpu-1kb", "smg") is None


def test_added_latency_excludes_the_engines_latency_in_the_same_round() -> None:
    taken = results(
        2,
        latency_1={OURS: [report(1, p50_us=150.0), report(1, p50_us=400.0)], "direct": [None, report(0, p50_us=50.0)]},
    )
    figures = Figures(taken)

    assert figures.rounds("latency-1-p50", OURS) == [None, 350.0]
    assert figures.median("latency-1-p50", "direct") == 50.0


def test_figures_for_a_thousand_streams_require_a_thousand_streams() -> None:
    few = report(1, connections=128, streaming=128, memory_bytes=2e6, idle_memory_bytes=1e6, p99_us=5_000.0, events=1)
    figures = Figures(results(1, streams_1000={"classic": [few]}))

    assert figures.median("memory-1000", "classic") is None
    assert figures.median("memory-idle", "classic") == 1.0


@pytest.mark.parametrize(
    ("ours", "at_least", "holds"), [(70, False, True), (80, False, False), (80, True, True), (None, True, None)]
)
def test_a_claim_holds_up_to_its_limit_and_is_unknown_without_a_figure(
    ours: float | None, at_least: bool, holds: bool | None
) -> None:
    claim = Claim("memory", lambda _: ours, 75, at_least)

    assert claim.holds(Figures(results(1))) is holds


def test_claims_of_an_empty_run_are_not_measured() -> None:
    assert {claim["holds"] for claim in claims_as_json(Figures(results(1)))} == {None}
