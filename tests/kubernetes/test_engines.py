"""The samples of engines in deploy/kubernetes/engines fit the chart's values and the Compose files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kubernetes.chart import DEPLOY, SETS, environment_of, of_kind, render

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("engines", ["vllm", "llamacpp"])
def test_the_sample_engines_have_a_headless_service_that_selects_them(engines: str) -> None:
    service, workload = yaml.safe_load_all((DEPLOY / "kubernetes" / "engines" / f"{engines}.yaml").read_text())
    template = workload["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    [port] = service["spec"]["ports"]
    assert port["port"] == container["ports"][0]["containerPort"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    set_of_values = {"vllm": "vllm-from-zero", "llamacpp": "defaults"}[engines]
    url = f"dns+http://{service['metadata']['name']}:{port['port']}"
    assert url in environment_of(render(SETS[set_of_values]))["BACKENDS"]
    for scaled in of_kind(render(SETS["vllm-from-zero"]), "ScaledObject"):
        assert scaled["spec"]["scaleTargetRef"]["name"] == "vllm"


def test_the_images_of_sample_engines_are_those_of_the_compose_files() -> None:
    for engines in ("vllm", "llamacpp"):
        _, workload = yaml.safe_load_all((DEPLOY / "kubernetes" / "engines" / f"{engines}.yaml").read_text())
        image = workload["spec"]["template"]["spec"]["containers"][0]["image"]
        assert f":-{image}}}" in (ROOT / f"docker-compose.{engines}.yml").read_text()
