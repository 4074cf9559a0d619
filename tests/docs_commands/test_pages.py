"""The commands of other pages, against a running proxy with real llama.cpp servers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.documents import ROOT
from support.llama_server import LlamaServer
from support.program import Proxy, environment
from support.readme import blocks, commands

PAGES = ("models", "fleet", "security", "reliability", "usage")
RUN_BY_OTHERS = ("start", "clients", "adding-an-engine")  # test_start.py; the suites `clients` and `installation`
SECRET, ADMIN = "sk-of-alice-0123456789", "sk-of-operators-0123456789"


@pytest.fixture(scope="module")
def engines(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(LlamaServer(tiny_model, "--slots", "2")) for _ in range(2)]


@pytest.fixture(scope="module")
def proxy(engines: list[LlamaServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    keys = {"ADMIN_KEY": ADMIN, "API_KEYS": f"alice:{SECRET}", "USAGE_FILE": str(folder / "usage.db")}
    with Proxy(folder, [engine.url for engine in engines], **keys) as running:
        yield running


@pytest.mark.parametrize(
    ("page", "command"), [(page, one) for page in PAGES for one in commands((ROOT / "docs" / f"{page}.md").read_text())]
)
def test_command_works(page: str, command: str, proxy: Proxy, engines: list[LlamaServer], tmp_path: Path) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    fleets = [block for block in blocks(text, "yaml") if "backends:" in block]
    if fleets:
        (tmp_path / "fleet.yaml").write_text(fleets[0])
    (tmp_path / ".curlrc").write_text("fail\n")  # an error status is a failure
    programs = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    variables = environment(PATH=programs, CURL_HOME=str(tmp_path), ADMIN_KEY=ADMIN, API_KEY=SECRET)
    typed = command.replace("http://127.0.0.1:8888", proxy.url).replace("llm-1:8080", f"127.0.0.1:{engines[0].port}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", typed],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", [*PAGES, *RUN_BY_OTHERS])
def test_commands_that_cannot_run_here_say_what_they_need(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for block in blocks(text.replace("\n  ```", "\n```"), "sh"):
        assert block.lstrip().startswith("# needs "), block
