"""The files in monitoring/ agree with each other and with the documents. The suite ``prometheus`` tries them."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from support.monitoring import DASHBOARD, panels, rules

DOCS = Path(__file__).parent.parent / "docs"
EXPRESSIONS = [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


def test_rules_and_dashboard_use_documented_metrics_only() -> None:
    documented = set(re.findall(r"`((?:inference_proxy|process)_\w+)`", (DOCS / "metrics.md").read_text()))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for text in EXPRESSIONS for name in re.findall(r"\b(?:\w+:)?(?:inference_proxy|process)_[\w:]+", text)}
    assert len(used) > 20
    assert {name.removesuffix("_bucket") for name in used - recorded} <= documented


def test_every_alert_is_documented_and_nothing_else() -> None:
    alerts = [rule["alert"] for rule in rules() if "alert" in rule]
    rows = re.findall(r"^\| `(InferenceProxy\w+)` \|", (DOCS / "monitoring.md").read_text(), re.MULTILINE)
    assert rows == alerts


def test_every_recorded_series_is_documented_and_nothing_else() -> None:
    recorded = [rule["record"] for rule in rules() if "record" in rule]
    rows = re.findall(r"^\| `(job\w*:[\w:]+)` \|", (DOCS / "monitoring.md").read_text(), re.MULTILINE)
    assert rows == recorded


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for one, other in combinations([panel["gridPos"] for panel in everything], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
        assert one["x"] + one["w"] <= 24


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows_for_any_data_source(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 10
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert 'job=~"$job", instance=~"$instance"' in target["expr"]


def test_the_variables_of_the_dashboard_are_those_that_it_uses() -> None:
    defined = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    used = set(re.findall(r"\$\{?([a-z]\w*)", str(DASHBOARD["panels"])))
    assert set(defined) == used
