"""The chart, rendered by a real Helm."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "CHART",
    "DEPLOY",
    "SETS",
    "Manifest",
    "container_of",
    "environment_of",
    "of_kind",
    "refusal",
    "render",
    "rendered_text",
]

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "inference-proxy"
_VALUES = Path(__file__).parent / "values"

SETS: dict[str, tuple[Path, ...]] = {
    "defaults": (),
    "everything": (_VALUES / "everything.yaml",),
    "minimal": (_VALUES / "minimal.yaml",),
    "high-availability": (CHART / "examples" / "high-availability.yaml",),
    "restricted": (CHART / "examples" / "restricted.yaml",),
    "fleet-file": (CHART / "examples" / "fleet-file.yaml",),
    "vllm-from-zero": (CHART / "examples" / "vllm-from-zero.yaml",),
}
"""Files of values by name. Each set is rendered and checked."""

Manifest = dict[str, Any]


def rendered_text(files: Sequence[Path] = (), *options: str, release: str = "inference-proxy") -> str:
    """What ``helm template`` prints for the namespace ``llm``.

    Raises:
        subprocess.CalledProcessError: the values are refused.
    """
    done = _helm(files, *options, release=release)
    done.check_returncode()
    return done.stdout


def render(files: Sequence[Path] = (), *options: str, release: str = "inference-proxy") -> list[Manifest]:
    """The same as objects, in Helm's order."""
    text = rendered_text(files, *options, release=release)
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def refusal(files: Sequence[Path] = (), *options: str) -> str:
    """Why Helm refuses these values; empty if it renders them."""
    done = _helm(files, *options, release="inference-proxy")
    return done.stderr if done.returncode else ""


def _helm(files: Sequence[Path], *options: str, release: str) -> subprocess.CompletedProcess[str]:
    values = [word for file in files for word in ("--values", str(file))]
    command = ["helm", "template", release, str(CHART), "--namespace", "llm", *values, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    """The objects of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def container_of(manifests: Sequence[Manifest]) -> Manifest:
    """The container of the proxy."""
    [deployment] = of_kind(manifests, "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def environment_of(manifests: Sequence[Manifest]) -> dict[str, str]:
    """The variables of the proxy's container, with those that come from Secrets of the chart."""
    secrets = {secret["metadata"]["name"]: secret["stringData"] for secret in of_kind(manifests, "Secret")}
    found: dict[str, str] = {}
    for variable in container_of(manifests)["env"]:
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        elif reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            found[variable["name"]] = secrets.get(reference["name"], {}).get(reference["key"], "")
    return found
