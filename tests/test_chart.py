"""The Helm chart follows the package and its settings. The suite `kubernetes` renders and validates it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from inference_engine_proxy_server import __version__
from kubernetes.chart import CHART
from kubernetes.generated import COPIES, MANIFESTS, README, SCHEMA, VERSIONED, readme, schema, with_version


def chart() -> dict[str, Any]:
    found = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_both_versions_of_the_chart_are_that_of_the_package() -> None:
    assert (chart()["version"], chart()["appVersion"]) == (__version__, __version__)


def test_documents_and_manifests_have_the_version_of_the_package() -> None:
    outdated = [file.name for file in VERSIONED if file.read_text() != with_version(file)]
    outdated += [
        file.name for file in MANIFESTS if f"helm.sh/chart: inference-proxy-{__version__}\n" not in file.read_text()
    ]
    assert outdated == [], "run: scripts/test.sh kubernetes --write"


def test_the_rules_and_the_dashboard_of_the_chart_are_those_of_monitoring() -> None:
    different = [copy.name for copy, original in COPIES.items() if copy.read_bytes() != original.read_bytes()]
    assert different == [], "run: scripts/test.sh kubernetes --write"


def test_the_schema_of_values_has_the_settings_of_the_program() -> None:
    assert SCHEMA.read_text() == schema(), "run: scripts/test.sh kubernetes --write"


def test_the_table_of_values_is_that_of_values_yaml_and_explains_each() -> None:
    assert README.read_text() == readme(), "run: scripts/test.sh kubernetes --write"
    unexplained = [row for row in README.read_text().splitlines() if row.startswith("| `") and row.endswith("|  |")]
    assert unexplained == []


def test_the_schema_knows_every_value_and_nothing_else() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(_names(values)) ^ set(_known(json.loads(SCHEMA.read_text()))) <= {
        "global", "autoscaling.behavior.scaleUp", "resources.claims",
    }  # fmt: skip


def _names(values: dict[str, Any], path: str = "") -> set[str]:
    """Names of values; objects whose members the user chooses have none inside."""
    found = set()
    for name, value in values.items():
        inside = isinstance(value, dict) and value and f"{path}{name}" not in _OPEN
        found |= _names(value, f"{path}{name}.") if inside else {f"{path}{name}"}
    return found


_OPEN = {
    "affinity", "autoscaling.behavior.scaleDown", "grafanaDashboard.labels", "podSecurityContext", "resources.limits",
    "resources.requests", "secrets.settings", "securityContext", "settings",
    "probes.startup", "probes.liveness", "probes.readiness", "strategy.rollingUpdate",
}  # fmt: skip


def _known(form: dict[str, Any], path: str = "") -> set[str]:
    found = set()
    for name, inner in form["properties"].items():
        inside = inner.get("properties") and f"{path}{name}" not in _OPEN
        found |= _known(inner, f"{path}{name}.") if inside else {f"{path}{name}"}
    return found


def test_the_folder_of_the_chart_has_its_name() -> None:
    assert Path(CHART).name == chart()["name"]
