"""Commands and values in documents about Kubernetes are accepted by Helm, the program and the schemas."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from inference_engine_proxy_server import __version__
from kubernetes.chart import CHART, of_kind, refusal, render
from kubernetes.test_schemas import problems
from support.program import run_command

ROOT = Path(__file__).parents[2]
PAGES = ("kubernetes.md", "gateway-api-inference-extension.md")
TEXTS = {page: (ROOT / "docs" / page).read_text() for page in PAGES} | {"README.md": (CHART / "README.md").read_text()}
VALUES = [
    pytest.param(block, id=f"{page}-{number}")
    for page, text in TEXTS.items()
    for number, block in enumerate(re.findall(r"```yaml\n(# values\.yaml\n.*?)```", text, re.DOTALL))
]
COMMANDS = [
    line
    for text in TEXTS.values()
    for line in re.sub(r" \\\n *", " ", text).splitlines()
    if re.match(r"helm (install|upgrade) inference-proxy deploy", line)
]


@pytest.mark.parametrize("block", VALUES)
def test_values_in_documents_are_accepted(block: str, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(block)
    assert refusal([file]) == ""
    for config_map in of_kind(render([file]), "ConfigMap"):
        fleet = tmp_path / "fleet.yaml"
        fleet.write_text(config_map["data"]["fleet.yaml"])
        checked = run_command(tmp_path, "fleet", "check", str(fleet))
        assert checked.returncode == 0, checked.stderr + checked.stdout


def test_there_are_values_and_commands_to_check() -> None:
    assert (len(VALUES), len(COMMANDS)) >= (5, 3)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_helm_are_accepted(command: str) -> None:
    words = shlex.split(command)
    assert words[3:4] == ["deploy/helm/inference-proxy"]
    only_for_upgrades = {"--create-namespace", "--reset-then-reuse-values"}
    options = [word for word in words[4:] if word not in only_for_upgrades]
    done = subprocess.run(
        ["helm", "template", words[2], words[3], *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_packaged_chart_is_complete(tmp_path: Path) -> None:
    packaged = ["helm", "package", str(CHART), "--destination", str(tmp_path)]
    subprocess.run(packaged, capture_output=True, check=True)
    archive = tmp_path / f"inference-proxy-{__version__}.tgz"
    assert f"helm push {archive.name} " in TEXTS[PAGES[0]]
    options = ["--set", "prometheusRule.enabled=true,grafanaDashboard.enabled=true"]
    done = subprocess.run(
        ["helm", "template", "a", str(archive), *options], capture_output=True, text=True, check=False
    )
    assert "alert: InferenceProxyDown" in done.stdout, done.stderr


def test_the_route_to_a_pool_has_the_types_of_the_gateway_api(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(apiVersion: gateway.*?)```", TEXTS[PAGES[1]], re.DOTALL)
    assert problems([yaml.safe_load(block)], tmp_path) == ""


def test_the_image_is_built_with_the_version_that_the_chart_wants() -> None:
    assert set(re.findall(r"inference-proxy:(\d+\.\d+\.\d+)", TEXTS[PAGES[0]])) == {__version__}
