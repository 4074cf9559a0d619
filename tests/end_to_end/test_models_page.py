"""Every example of docs/models.md is a valid fleet file, and does what the page says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import jsonschema
import pytest
import yaml

from inference_engine_proxy_server import cli
from inference_engine_proxy_server.config.fleet_form import fleet_file_schema
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.models.dialects import DIALECTS
from support.fleet import Fleet

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(# fleet\.yaml\n.*?)```\n(.*?)(?=```yaml|\Z)", PAGE, re.DOTALL)
ROW = re.compile(r"^\| `(\{.*?\})` \| `(\{.*\})` \|$", re.MULTILINE)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


def test_every_example_has_rows() -> None:
    assert len(EXAMPLES) == 6
    assert all(len(ROW.findall(text)) >= 2 for _, text in EXAMPLES)
    assert sum(len(ROW.findall(text)) for _, text in EXAMPLES) == PAGE.count("\n| `{")


@pytest.mark.parametrize("example", [file for file, _ in EXAMPLES])
def test_an_example_passes_the_check(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BACKENDS", raising=False)
    Path("fleet.yaml").write_text(example)
    assert cli.main(["fleet", "check", "fleet.yaml"]) == 0
    output = capsys.readouterr().out
    assert "fleet.yaml is valid" in output
    for name, entry in yaml.safe_load(example)["models"].items():
        assert ("aliases" in entry) is (f"{name}  also " in output)
        assert ("serves_as" in entry) is (f"{name}  serves as " in output)
    jsonschema.validate(yaml.safe_load(example), fleet_file_schema(Settings))


@pytest.mark.parametrize(("example", "text"), EXAMPLES)
async def test_an_example_does_what_the_page_says(fleet: Fleet, example: str, text: str) -> None:
    models = [name for name, entry in yaml.safe_load(example)["models"].items() if "serves_as" not in entry]
    engine = await fleet.engine(owner="vllm", models=[{"id": name} for name in (*models, "another-model")])
    proxy = await fleet.proxy(engine, fleet_file=example)
    for given, expected in ROW.findall(text):
        reply = await proxy.http.post("/v1/chat/completions", content=given)
        assert reply.status_code == 200, given
        assert json.loads(engine.served[-1].partition(b"\r\n\r\n")[2]) == json.loads(expected)


def test_the_page_has_every_path_on_which_parameters_apply() -> None:
    table = PAGE.partition("### Where parameters apply")[2].partition("###")[0]
    assert {path for path in re.findall(r"`(/[\w/]+)`", table) if path not in ("/v1", "/api/chat")} == set(DIALECTS)
    for path, limit, effort in re.findall(r"^\| `(/v1/[\w/]+)` \| `(\w+)` \| `([\w.]+)`", table, re.MULTILINE):
        assert (DIALECTS[path].limit, ".".join(DIALECTS[path].effort)) == (limit, effort)
