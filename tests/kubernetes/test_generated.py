"""Rendered manifests are those of the chart as it is now."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from kubernetes.chart import CHART, DEPLOY, SETS, render
from kubernetes.generated import MANIFESTS, manifest


@pytest.mark.parametrize(("file", "name"), MANIFESTS.items(), ids=lambda value: getattr(value, "name", value))
def test_committed_manifests_are_in_step(file: Path, name: str) -> None:
    assert file.read_text() == manifest(name), "run: scripts/test.sh kubernetes --write"


def test_every_manifest_is_rendered_or_a_sample_of_engines() -> None:
    assert set((DEPLOY / "kubernetes").glob("*.yaml")) == set(MANIFESTS)


def test_objects_name_no_namespace_so_that_kubectl_chooses_it() -> None:
    assert [one["kind"] for one in render() if "namespace" in one["metadata"]] == []


def notes(folder: Path, *options: str) -> str:
    """What Helm prints after an installation.

    `helm template` leaves it out, so a copy of the chart has it in an object.
    """
    chart = folder / CHART.name
    shutil.copytree(CHART, chart)
    shutil.copy(chart / "templates" / "NOTES.txt", chart / "files" / "notes")
    (chart / "templates" / "notes.yaml").write_text(
        """{"kind": "ConfigMap", "notes": {{ tpl (.Files.Get "files/notes") . | quote }}}"""
    )
    command = ["helm", "template", "prod", str(chart), "--show-only", "templates/notes.yaml", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return str(yaml.safe_load(done.stdout)["notes"])


def test_notes_say_how_to_reach_the_proxy_and_what_is_missing(tmp_path: Path) -> None:
    text = notes(tmp_path)
    assert "http://prod-inference-proxy.default.svc/v1" in text
    assert "The image inference-proxy:" in text
    assert "Anyone who reaches the Service can use the engines" in text
    assert "helm test prod" in text


def test_notes_of_a_complete_installation_have_no_warnings(tmp_path: Path) -> None:
    [values] = SETS["high-availability"]
    assert "!" not in notes(tmp_path, "--values", str(values))
