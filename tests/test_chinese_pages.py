"""Chinese pages in docs/zh-TW have the headings, code and tables of their English originals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted((DOCS / "zh-TW").glob("*.md"))
_CODE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def original(page: Path) -> str:
    return (DOCS / page.name).read_text()


def test_a_page_names_its_original(page: Path) -> None:
    assert re.search(rf"英文版.{{0,3}}\[[^]]+\]\(\.\./{page.name}\)", page.read_text())


def test_a_page_has_the_headings_of_its_original(page: Path) -> None:
    assert levels(page.read_text()) == levels(original(page))


def test_a_page_has_the_code_of_its_original(page: Path) -> None:
    texts = page.read_text(), original(page)
    chinese, english = ([code[0] for code in _CODE.finditer(text)] for text in texts)
    assert chinese == english


def test_a_page_has_the_tables_of_its_original(page: Path) -> None:
    assert tables(page.read_text()) == tables(original(page))


def levels(text: str) -> list[str]:
    """The marks of all headings, in order: ``#``, ``##``, ..."""
    return re.findall(r"^(#+) ", _CODE.sub("", text), re.MULTILINE)


def tables(text: str) -> list[list[tuple[int, str]]]:
    """Of each table, for each row below the header: its number of cells, and its first cell if that is code."""
    found = re.findall(r"(?:^\|.*\n?)+", _CODE.sub("", text), re.MULTILINE)
    return [[_row(line) for line in table.splitlines()[2:]] for table in found]


def _row(line: str) -> tuple[int, str]:
    first = line.strip("|").partition(" | ")[0].strip()
    return len(re.findall(r"(?<!\\)\|", line)), first if re.fullmatch(r"`[^`]*`", first) else ""
