"""Every page can be reached, every link has a target, and the program accepts what pages tell readers to type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from inference_engine_proxy_server.cli import build_parser
from inference_engine_proxy_server.config.settings import Settings
from support.documents import PAGES, ROOT, assignments, command_lines, prose_of

NAVIGATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
OF_OTHER_PROGRAMS = re.compile(
    r"(LLAMA_ARG|OLLAMA|OTEL|VLLM|OPENAI|CLAUDE_CODE|REDIS|KUBE)_\w+"  # by their beginnings
    r"|\w+_IMAGE|MODEL_ALIAS|HF_TOKEN|PROXIES|PROXY_REPLICAS"  # of the Compose files
    r"|DO_NOT_TRACK|ENABLE_FORWARD_USER_INFO_HEADERS|ENABLE_OLLAMA_API|PYTHONPATH|PATH"
    r"|NOTIFY_SOCKET|LISTEN_FDS|LISTEN_PID|MAINPID|WATCHDOG_USEC|KUBECONFIG|NAME"
)
PLACEHOLDER = re.compile(r"\.\.\.|%d|<|[^\x00-\x7f]|[A-Z]{3,}")
NAME_OF = {page: str(page.relative_to(ROOT)) for page in PAGES}


def in_order(entries: list[object]) -> list[str]:
    """The pages of a part of the navigation, in its order."""
    found: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(entry, dict):
            for inner in entry.values():
                found += in_order(inner if isinstance(inner, list) else [inner])
    return found


def in_repository(entry: str) -> str:
    """The file of a page of the site; pages below ``project/`` come from the root."""
    return entry.removeprefix("project/") if entry.startswith("project/") else f"docs/{entry}"


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    listed = [in_repository(entry) for entry in in_order(NAVIGATION)]
    assert len(listed) == len(set(listed))
    assert {one for one in listed if not (ROOT / one).exists()} == set(), "entries of mkdocs.yml without a page"
    pages = {NAME_OF[page] for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages - set(listed) == set(), "pages that are missing in mkdocs.yml, docs/README.md and the READMEs"


def test_the_overview_has_the_order_of_the_navigation() -> None:
    listed = [in_repository(entry) for entry in in_order(NAVIGATION)]
    overview = (ROOT / "docs" / "README.md").read_text().partition("\n## ")[2]
    links = re.findall(r"^\* \[[^]]*\]\(([^)]+)\)", overview, re.MULTILINE)
    assert ["docs/README.md", *(str((ROOT / "docs" / one).resolve().relative_to(ROOT)) for one in links)] == listed


@pytest.mark.parametrize(("name", "heading"), [("README.md", "## Documentation"), ("README.zh-TW.md", "## 文件")])
def test_readmes_list_the_pages_in_the_same_order(name: str, heading: str) -> None:
    table = (ROOT / name).read_text().partition(heading)[2].partition("\n## ")[0]
    rows = "".join(line for line in table.splitlines() if line.startswith("| "))
    links = [target.replace("docs/zh-TW/", "docs/") for target in re.findall(r"\]\(([^)]+)\)", rows)]
    listed = [in_repository(entry) for entry in in_order(NAVIGATION)]
    assert links == [one for one in listed if "zh-TW" not in one and one != "docs/README.md"]


def test_every_link_in_a_document_has_a_target() -> None:
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose_of(page)):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path) if path else page
            if not linked.exists() or (anchor and anchor not in anchors(linked)):
                dead.append(f"{NAME_OF[page]}: {target}")

    assert dead == []


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings as GitHub makes them: lower case, hyphens for blanks, no punctuation."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    }


def test_pages_have_command_lines_and_assignments() -> None:
    """Otherwise the next tests would test nothing."""
    assert len([line for page in PAGES for line in command_lines(page)]) > 40
    assert len([name for page in PAGES for name, _ in assignments(page)]) > 40


@pytest.mark.parametrize("page", PAGES, ids=NAME_OF.get)
def test_every_command_line_is_accepted(page: Path) -> None:
    for line in command_lines(page):
        is_name_of_a_group = line in ("fleet check", "keys new", "announce")  # named in a sentence, without arguments
        if line and not is_name_of_a_group:
            try:
                build_parser().parse_args(shlex.split(line))
            except SystemExit:
                pytest.fail(f"{NAME_OF[page]}: inference-proxy {line}")


@pytest.mark.parametrize("page", PAGES, ids=NAME_OF.get)
def test_every_assigned_variable_is_a_setting_with_an_allowed_value(page: Path) -> None:
    for name, value in assignments(page):
        if OF_OTHER_PROGRAMS.fullmatch(name):
            continue
        field = name.lower()
        assert field in Settings.model_fields, (
            f"{NAME_OF[page]}: {name} is no setting; if it is of another program, say so here"
        )
        if value and not PLACEHOLDER.search(value):
            Settings.model_validate({field: value.rstrip(",.")})  # raises if the value is not allowed
