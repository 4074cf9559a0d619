"""Pages for newcomers: the files that they show are valid, settings exist, and figures are those that were measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
import yaml

from inference_engine_proxy_server import cli
from inference_engine_proxy_server.config.fleet_form import fleet_file_schema
from inference_engine_proxy_server.config.key_file import read_key_file
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import load_settings

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [*sorted(DOCS.glob("moving-from-*.md")), *(DOCS / f"{name}.md" for name in ("comparison", "faq", "tuning"))]
SETTINGS = {name.upper() for name in Settings.model_fields}


def blocks(language: str, title: str) -> Sequence[object]:
    """The code blocks of all pages whose first line is ``# TITLE``, as parameters of a test."""
    found = []
    for page in PAGES:
        of_page = re.findall(rf"^```{language}\n(# {title}\n.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        found += [pytest.param(one, id=f"{page.stem}-{number}") for number, one in enumerate(of_page)]
    assert len(found) >= 2
    return found


@pytest.mark.parametrize("text", blocks("yaml", r"fleet\.yaml"))
def test_a_fleet_file_is_valid(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fleet.yaml").write_text(text)
    Path("keys.yaml").write_text("keys: []")
    assert cli.main(["fleet", "check", "fleet.yaml"]) == 0, capsys.readouterr()
    jsonschema.validate(yaml.safe_load(text), fleet_file_schema(Settings))


@pytest.mark.parametrize("text", blocks("yaml", r"keys\.yaml"))
def test_a_key_file_is_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    assert len(read_key_file(tmp_path / "keys.yaml")) == len(yaml.safe_load(text)["keys"])


@pytest.mark.parametrize("text", blocks("ini", r"\.env"))
def test_an_env_file_is_valid_and_sets_no_default(text: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(text)
    loaded = load_settings({"BACKENDS": "http://llm-1:8080"}, tmp_path / ".env")
    assert loaded.warnings == ()
    for line in text.splitlines()[1:]:
        name = line.partition("=")[0].lower()
        assert getattr(loaded.settings, name) != Settings.model_fields[name].default, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    words = set(re.findall(r"`([A-Z][A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", page.read_text()))
    assert words <= SETTINGS | {"TIME_WAIT"}


def test_the_comparison_has_the_measured_figures() -> None:
    page, measured = (DOCS / "comparison.md").read_text(), (DOCS / "performance.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| ([\d.,]+) \| ([\d.,]+) \| ([\d.,]+) \| ([\d.,-]+) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    costs = _rows(measured, "**CPU time and throughput of one core**")
    memory = _rows(measured, "**Streams and memory**")
    for name, small, large, event, streams in rows:
        assert [small, large, event] == [costs[name][column] for column in (0, 1, 3)], name
        assert streams == memory[name][4], name


def test_the_comparison_has_the_measured_failures() -> None:
    page, measured = (DOCS / "comparison.md").read_text(), (DOCS / "fault-tests.md").read_text()
    names, figures = re.search(r"^\| (inference-proxy \|.*) \|\n\|[-|]+\n\| (.*) \|$", page, re.MULTILINE).groups()  # type: ignore[union-attr]
    failures = _rows(measured, "## Comparison with other proxies")
    for name, figure in zip(names.split(" | "), figures.split(" | "), strict=True):
        assert failures[name][3].split()[0] == figure, name


def _rows(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading, by their first cell."""
    table = text.partition(heading)[2].partition("\n|")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: rest for name, *rest in cells}
