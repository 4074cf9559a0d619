"""The rules and the dashboard in monitoring/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

__all__ = ["DASHBOARD", "MONITORING", "RULES", "panels", "rules"]

MONITORING = Path(__file__).parents[2] / "monitoring"
RULES = (MONITORING / "recording-rules.yml", MONITORING / "alert-rules.yml")
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana" / "inference-proxy.json").read_text())


def rules() -> list[dict[str, Any]]:
    """All rules, in order."""
    return [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard, without its rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
