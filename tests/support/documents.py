"""The pages that people read, and what stands in their code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PAGES", "ROOT", "assignments", "code_of", "command_lines", "prose_of"]

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "tests" / "README.md",
    ROOT / "benchmarks" / "README.md",
]

_BLOCK = re.compile(r"^[ ]*```\w*\n(.*?)^[ ]*```[ ]*$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_COMMANDS = "|".join(("serve", "demo", "announce", "doctor", "top", "settings", "keys", "usage", "fleet"))
_COMMAND = re.compile(
    r"(?:^|^\$ |/bin/|^(?:[A-Z_]+=\S* )+)inference-proxy((?: .*)?)$"  # the command of the line
    rf"|[ ]inference-proxy( (?:{_COMMANDS})\b.*)$"  # one that another program starts, such as Docker
)
_ASSIGNMENT = re.compile(r"(?<![\w$.{-])([A-Z][A-Z0-9_]{2,})=('[^']*'|\"[^\"]*\"|[^\s'\"`]*)")


def prose_of(page: Path) -> str:
    """The text of a page without its code blocks."""
    return _BLOCK.sub("", page.read_text())


def code_of(page: Path) -> Iterator[str]:
    """The lines of the code blocks of a page, continued lines as one; then its pieces of inline code."""
    for block in _BLOCK.findall(page.read_text()):
        yield from block.replace("\\\n", " ").splitlines()
    for piece in _INLINE.findall(prose_of(page)):
        yield piece.replace("\n", " ")


def command_lines(page: Path) -> Iterator[str]:
    """The arguments of each ``inference-proxy`` on a page, without what the shell makes of the line."""
    for line in code_of(page):
        found = _COMMAND.search(re.split(r"\s#|\s[|&>]", line.strip())[0].rstrip())
        if found is not None and not line.strip().startswith("- "):  # a list item of YAML
            yield (found[1] or found[2] or "").strip()


def assignments(page: Path) -> Iterator[tuple[str, str]]:
    """Each ``NAME=value`` in the code of a page."""
    for line in code_of(page):
        for name, value in _ASSIGNMENT.findall(line):
            yield name, value.strip("'\"")
