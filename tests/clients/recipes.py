"""The code blocks of docs/clients.md, and the output of a block that is run unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path

from support.program import environment

__all__ = ["BLOCKS", "MODEL", "Block", "Output", "output_of", "run", "start"]

ROOT = Path(__file__).parents[2]
MODEL = "gemma-3-270m"  # of the page and of the demo

_NOT_RUN = "## Configuration of programs"  # no test runs the blocks below this heading, as the page says
_ADDRESS = "http://127.0.0.1:8888"
_INSTALLED = ROOT / ".venv-clients"  # created by `scripts/test.sh clients`
_DEADLINE_SECONDS = 60
_PIECE_BYTES = 1 << 16
_PIPE_BYTES = 1 << 20  # 256 pieces; the maximum for unprivileged users


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        name: its heading, and its number if the heading has several: ``curl``, ``curl 2``.
        text: the content between the fences.
        is_run: it is one of the tested recipes.
    """

    name: str
    language: str
    text: str
    is_run: bool

    def at(self, url: str) -> str:
        """The text with the address of a proxy in place of that of the page."""
        assert _ADDRESS in self.text, f"{self.name} does not say where the proxy is"
        return self.text.replace(_ADDRESS, url)


def _read_blocks() -> dict[str, Block]:
    blocks: dict[str, Block] = {}
    page = (ROOT / "docs" / "clients.md").read_text()
    for section in re.split(r"^(?=##+ )", page, flags=re.MULTILINE):
        heading = section.partition("\n")[0].lstrip("# ")
        is_run = page.index(section) < page.index(_NOT_RUN)
        for number, found in enumerate(re.finditer(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL), 1):
            name = heading if number == 1 else f"{heading} {number}"
            blocks[name] = Block(name, found[1], found[2], is_run)
    return blocks


BLOCKS = _read_blocks()


@dataclass(frozen=True, slots=True)
class Output:
    """The standard output of a recipe.

    Attributes:
        pieces: one for each write.
    """

    pieces: Sequence[str]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def start(block: Block, url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a recipe against the proxy at ``url``; ``folder`` is an empty directory.

    Its standard output is a pipe that keeps separate writes apart.
    """
    reading, writing = os.pipe2(os.O_DIRECT)
    fcntl(writing, F_SETPIPE_SZ, _PIPE_BYTES)  # room for all pieces: Node joins writes that have to wait
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            ["timeout", str(_DEADLINE_SECONDS), *_command(block, url, folder)],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=stderr,
        )
    os.close(writing)
    process.stdout = open(reading, "rb", buffering=0)  # noqa: SIM115, PTH123 - `output_of` closes it
    return process


def output_of(process: subprocess.Popen[bytes], folder: Path) -> Output:
    """The output of a started recipe until it ends; it must succeed."""
    assert process.stdout is not None
    with process, process.stdout as stdout:
        pieces = list(iter(lambda: stdout.read(_PIECE_BYTES), b""))
    output = Output([piece.decode() for piece in pieces])
    assert process.returncode == 0, output.text + (folder / "stderr").read_text()
    return output


def run(block: Block, url: str, folder: Path) -> Output:
    """Run a recipe to its end: :func:`start`, then :func:`output_of`."""
    return output_of(start(block, url, folder), folder)


def _command(block: Block, url: str, folder: Path) -> list[str]:
    text = block.at(url)
    match block.language:
        case "bash":
            return ["bash", "-euo", "pipefail", "-c", text]
        case "python":
            program = folder / "chat.py"
            program.write_text(text)
            return [sys.executable if "langchain" not in text else str(_INSTALLED / "bin/python"), str(program)]
        case "js":
            program = folder / "chat.mjs"
            program.write_text(text)
            (folder / "node_modules").symlink_to(_INSTALLED / "node_modules")
            return ["node", str(program)]
    raise AssertionError(f"{block.name}: no way to run {block.language}")
