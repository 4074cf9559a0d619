"""docs/fault-tests.md names a test for each fault case, and every named test exists."""

from __future__ import annotations

import re
from pathlib import Path

_TESTS = Path(__file__).parent.parent
_PAGE = _TESTS.parent / "docs" / "fault-tests.md"
_ROW = re.compile(r"^\| ([A-Z]{2}\d\d) \| (.+) \| (.*) \|$", re.MULTILINE)
_TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def test_every_named_test_exists() -> None:
    named = _TEST.findall(_PAGE.read_text())
    assert len(named) > 100
    unknown = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"def {name}\(", (_TESTS / file).read_text() if (_TESTS / file).exists() else "")
    ]
    assert not unknown


def test_every_case_has_a_test_or_a_reason_against_one() -> None:
    rows = _ROW.findall(_PAGE.read_text())
    cases = [case for case, _, _ in rows]
    assert len(cases) == len(set(cases)) > 110
    assert not [case for case, _, tests in rows if not _TEST.search(tests) and not tests.startswith("left out: ")]


def test_every_fault_test_is_in_the_table() -> None:
    named = {name for _, name in _TEST.findall(_PAGE.read_text())}
    written = {
        name
        for file in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"def (test_[a-z]{2}\d\d_\w+)\(", file.read_text())
    }
    assert written <= named, written - named
