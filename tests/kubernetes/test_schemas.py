"""Kubernetes, KEDA, Prometheus' operator and the Gateway API know every field of the rendered objects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from kubernetes.chart import DEPLOY, SETS, Manifest, render

VERSIONS = [f"1.{minor}.0" for minor in range(27, 38)]
"""From the oldest that Chart.yaml allows."""
PACKAGES = Path(__file__).parents[2] / ".venv-kubernetes"
MODULES = {
    "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
    "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1",
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
}
"""Packages of npm with types and checks made of the CustomResourceDefinitions, by API version."""


def is_custom(manifest: Manifest) -> bool:
    return manifest["apiVersion"] in MODULES


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_objects_follow_the_schemas_of_kubernetes(name: str, version: str) -> None:
    manifests = render(SETS[name], "--kube-version", version)
    built_in = [manifest for manifest in manifests if not is_custom(manifest)]
    assert len(built_in) >= 3
    for manifest in built_in:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("file", sorted((DEPLOY / "kubernetes").rglob("*.yaml")), ids=lambda file: file.name)
def test_committed_manifests_follow_the_schemas_of_kubernetes(file: Path) -> None:
    manifests = [manifest for manifest in yaml.safe_load_all(file.read_text()) if manifest]
    for manifest in manifests:
        if not is_custom(manifest):
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_a_wrong_field_is_found() -> None:
    [manifest] = [one for one in render() if one["kind"] == "Deployment"]
    manifest["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def problems(manifests: Sequence[Manifest], folder: Path) -> str:
    """What TypeScript's compiler and the checks of the packages find in custom objects; empty if nothing."""
    folder.mkdir(exist_ok=True)
    (folder / "node_modules").symlink_to(PACKAGES / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    imports, uses = set(), []
    for number, manifest in enumerate(manifests):
        kind, module = manifest["kind"], MODULES[manifest["apiVersion"]]
        imports.add(f'import {{ {kind}, type I{kind} }} from "{module}";')
        uses.append(f"const of{number}: I{kind} = {json.dumps(manifest)};\nnew {kind}(of{number}).validate();")
    source = folder / "objects.ts"
    source.write_text("\n".join([*sorted(imports), *uses]) + "\n")
    compiler = [str(PACKAGES / "node_modules" / ".bin" / "tsc"), "--strict", "--skipLibCheck", "--target", "es2022"]
    options = ["--module", "nodenext", "--moduleResolution", "nodenext"]
    compiled = subprocess.run(
        [*compiler, *options, str(source)], cwd=folder, capture_output=True, text=True, check=False
    )
    ran = subprocess.run(["node", "objects.js"], cwd=folder, capture_output=True, text=True, check=False)
    return compiled.stdout + (ran.stderr if ran.returncode else "")


def custom_objects() -> list[Manifest]:
    return [manifest for files in SETS.values() for manifest in render(files) if is_custom(manifest)]


def test_custom_objects_have_the_types_of_their_definitions(tmp_path: Path) -> None:
    manifests = custom_objects()
    assert {manifest["kind"] for manifest in manifests} == {
        "HTTPRoute", "PrometheusRule", "ScaledObject", "ServiceMonitor",
    }  # fmt: skip
    assert problems(manifests, tmp_path) == ""


def test_an_unknown_field_and_a_wrong_value_of_a_custom_object_are_found(tmp_path: Path) -> None:
    for folder, (field, value) in enumerate([("minReplicas", 1), ("minReplicaCount", "1"), ("scaleTargetRef", {})]):
        manifest = next(one for one in custom_objects() if one["kind"] == "ScaledObject")
        manifest["spec"][field] = value
        assert problems([manifest], tmp_path / str(folder)) != ""
    route = next(one for one in custom_objects() if one["kind"] == "HTTPRoute")
    route["spec"]["rules"][0]["timeouts"]["request"] = "forever"
    assert "timeouts/request" in problems([route], tmp_path / "pattern")
