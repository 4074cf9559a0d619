"""The parts of deploy/ that follow from others.

These are the versions of the chart, the settings in the schema of values, the table of values, copies of rules and of
the dashboard, and rendered manifests.

::

    python -m kubernetes.generated      writes them again; needs Helm
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.config.settings import Settings
from kubernetes.chart import CHART, DEPLOY, SETS, rendered_text
from support.monitoring import MONITORING

__all__ = [
    "COPIES",
    "FROM_OTHER_VALUES",
    "MANIFESTS",
    "README",
    "SCHEMA",
    "SECRETS",
    "VERSIONED",
    "manifest",
    "readme",
    "schema",
    "with_version",
]

ROOT = Path(__file__).parents[2]
SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"
COPIES = {
    CHART / "files" / "alert-rules.yml": MONITORING / "alert-rules.yml",
    CHART / "files" / "recording-rules.yml": MONITORING / "recording-rules.yml",
    CHART / "files" / "inference-proxy.json": MONITORING / "grafana" / "inference-proxy.json",
}
"""Files of the chart, which cannot read outside its folder, and their originals."""
MANIFESTS = {
    DEPLOY / "kubernetes" / "inference-proxy.yaml": "defaults",
    DEPLOY / "kubernetes" / "high-availability.yaml": "high-availability",
}
"""Rendered manifests, and the values they are rendered with."""
VERSIONED = (CHART / "Chart.yaml", ROOT / "docs" / "kubernetes.md")
"""Files that name the version of the program."""

SECRETS = ("ADMIN_KEY", "ANNOUNCE_KEY", "API_KEYS", "BACKEND_API_KEY", "METRICS_KEY", "STATE_URL")
FROM_OTHER_VALUES = {
    "ADMIN_PORT", "API_KEYS_FILE", "BACKENDS", "CONFIG_FILE", "HOST", "MODEL", "MODEL_DIR", "PORT", "TLS_CERT_FILE",
    "TLS_KEY_FILE",
}  # fmt: skip
"""Settings that are not below ``settings``, because other values give them, or because only Compose uses them."""

_MARK = "<!-- The table is generated from values.yaml: scripts/test.sh kubernetes --write -->"
_WHOLE = {"settings", "behavior", "strategy", "podSecurityContext", "securityContext"}
_LIMITS = ("type", "enum", "minimum", "maximum", "exclusiveMinimum")


def with_version(file: Path) -> str:
    """The text of a file with the version of the program."""
    named = r"(\b(?:version|appVersion): |\binference-proxy[:-])\d+\.\d+\.\d+"
    return re.sub(named, rf"\g<1>{__version__}", file.read_text())


def schema() -> str:
    """The text of the schema, with the settings as the program knows them."""
    whole: dict[str, Any] = json.loads(SCHEMA.read_text())
    values = whole["properties"]
    values["settings"]["properties"] = {name: form for name, form in _settings() if name not in SECRETS}
    values["secrets"]["properties"]["settings"]["properties"] = {
        name: {"type": "string", "minLength": 1} for name in SECRETS
    }
    values["secrets"]["properties"]["existing"]["properties"]["settings"]["items"] = {"enum": list(SECRETS)}
    return json.dumps(whole, indent=2) + "\n"


def _settings() -> Iterator[tuple[str, dict[str, Any]]]:
    for field, described in sorted(Settings.model_json_schema()["properties"].items()):
        if field.upper() in FROM_OTHER_VALUES:
            continue
        form = described.get("anyOf", [described])[0]  # the other alternative is null
        if form.get("type") in {"array", "object", None}:
            form = {"type": ["string", "integer"]}  # written as one text, such as 429,503; or as 429 alone
        limits = {name: form[name] for name in _LIMITS if name in form}
        yield field.upper(), {"description": described["description"].replace("\n", " "), **limits}


def readme() -> str:
    """The text of the chart's README, with a row for each value."""
    before, _, after = README.read_text().partition(_MARK)
    _, _, after = after.partition("\n\n## ")
    rows = [f"| `{name}` | `{default}` | {meaning} |" for name, default, meaning in _rows()]
    table = "\n".join(["| value | default | meaning |", "|---|---|---|", *rows])
    return f"{before}{_MARK}\n\n{table}\n\n## {after}"


def _rows() -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each value, as values.yaml has them. A comment belongs to what follows it."""
    text = (CHART / "values.yaml").read_text()
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    yield from _rows_of(node, (), text.splitlines(), "")


def _rows_of(
    mapping: yaml.MappingNode, path: tuple[str, ...], lines: list[str], above: str
) -> Iterator[tuple[str, str, str]]:
    for key, value in mapping.value:
        name = (*path, key.value)
        meaning = _comment_above(lines, key.start_mark.line)
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        if is_block and name[-1] not in _WHOLE:
            yield from _rows_of(value, name, lines, meaning)
        else:
            default = json.dumps(yaml.safe_load(yaml.serialize(value)))
            yield ".".join(name), default.replace("|", "\\|"), (meaning or above).replace("|", "\\|")


def _comment_above(lines: list[str], line: int) -> str:
    words: list[str] = []
    while line and (match := re.fullmatch(r" *# ?((?!---).*)", lines[line - 1])):
        words.insert(0, match[1].strip())
        line -= 1
    meaning = " ".join(words)
    return meaning.partition(" - name:")[0]  # without the example of an entry


def manifest(name: str) -> str:
    """The text of rendered manifests, without the pod of ``helm test``."""
    head = (
        f"# Rendered by `scripts/test.sh kubernetes --write` from the chart, with the values `{name}`. Do not edit.\n"
    )
    return head + rendered_text(SETS[name], "--skip-tests")


def _write() -> None:
    for copy, original in COPIES.items():
        copy.write_bytes(original.read_bytes())
    for file in VERSIONED:
        file.write_text(with_version(file))
    SCHEMA.write_text(schema())
    README.write_text(readme())
    for file, name in MANIFESTS.items():
        file.write_text(manifest(name))


if __name__ == "__main__":
    _write()
