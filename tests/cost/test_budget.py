"""The budget of a request and of an event. A change that costs more or less must update ``budget.json``.

::

    python tests/cost/test_budget.py        measures, and rewrites the file
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from cost.meter import Costs, Count, measure

BUDGET = Path(__file__).with_name("budget.json")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SLACK = 0.02
SLACK_OF_OTHER_PYTHONS = 0.15  # their numbers of calls differ slightly, too


@pytest.fixture(scope="module")
def costs() -> Costs:
    return measure()


@pytest.fixture(scope="module")
def counts(costs: Costs) -> dict[str, Count]:
    return counts_of(costs)


def counts_of(costs: Costs) -> dict[str, Count]:
    """The cost of each step: by default, and without what resumes streams or assembles replies."""
    unresumed = measure(stream_resume="off", assemble_replies=False)
    return {
        "request": unresumed.request,
        "event": unresumed.event,
        "resumable request": costs.request,
        "resumable event": costs.event,
    }


@pytest.mark.parametrize("what", ["request", "event", "resumable request", "resumable event"])
def test_each_step_costs_its_budget(counts: dict[str, Count], what: str) -> None:
    budget = json.loads(BUDGET.read_text())
    allowed, found = budget[what], asdict(counts[what])
    if budget["python"] != PYTHON:
        assert found["calls"] <= allowed["calls"] * (1 + SLACK_OF_OTHER_PYTHONS)
        return
    for unit in ("calls", "instructions"):
        too_much = f"a {what} takes {found[unit]} {unit}, and {allowed[unit]} are allowed: see {BUDGET.name}"
        assert found[unit] <= allowed[unit] * (1 + SLACK), too_much
        assert found[unit] >= allowed[unit] * (1 - SLACK) - 1, (
            f"better than the budget: lower it to {found[unit]} {unit}"
        )


def test_a_longer_body_costs_no_more_python(costs: Costs) -> None:
    assert costs.request.instructions == pytest.approx(measure(body_bytes=20_000).request.instructions, rel=SLACK)


def test_a_longer_prompt_costs_hardly_more_python() -> None:
    short, long = (measure(body_bytes=size, balancing_policy="expected_time") for size in (1000, 20_000))
    assert long.request.instructions <= short.request.instructions * 1.05


def test_a_model_without_rules_costs_hardly_more_where_others_have_rules(costs: Costs) -> None:
    rules = "models: {other: {aliases: [alias], parameters: {set: {max_tokens: 9}}}}"
    assert measure(fleet_file=rules).request.instructions <= costs.request.instructions * 1.02


def test_a_larger_fleet_costs_hardly_more(costs: Costs) -> None:
    assert measure(backends=24).request.instructions <= costs.request.instructions * 1.05


def test_the_meter_notices_additional_work(monkeypatch: pytest.MonkeyPatch, costs: Costs) -> None:
    from inference_engine_proxy_server.dispatch.forwarder import Forwarder

    usual = Forwarder.forward

    async def dearer(self: Forwarder, *arguments: Any) -> None:
        sum(number for number in range(20))
        await usual(self, *arguments)

    monkeypatch.setattr(Forwarder, "forward", dearer)
    found = measure().request
    assert found.instructions > costs.request.instructions + 100
    assert found.calls > costs.request.calls + 20


def _write(costs: Costs) -> None:
    lines = {"python": PYTHON} | {what: asdict(count) for what, count in counts_of(costs).items()}
    BUDGET.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    _write(measure())
