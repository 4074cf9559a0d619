"""The commands and the code of the README."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["ASK", "CHINESE", "COPY_SETTINGS", "INSTALL", "README", "RUN", "SERVE", "blocks", "commands"]

_ROOT = Path(__file__).parents[2]
README = (_ROOT / "README.md").read_text()
CHINESE = (_ROOT / "README.zh-TW.md").read_text()

RUN = "scripts/run.sh"
ASK, = re.findall(r"^curl -N (?:.*\\\n)*.*", README, re.MULTILINE)  # fmt: skip
COPY_SETTINGS = "cp .env.example .env"
INSTALL = "pip install ."
SERVE = "inference-proxy serve --backends http://llm-1:8080,http://llm-2:8080"


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Every command of the shell blocks, without its comment."""
    lines = "".join(blocks(text.replace("\n  ```", "\n```"), "bash")).replace("\\\n", "\0").splitlines()
    return [line.partition("  #")[0].rstrip().replace("\0", "\\\n") for line in lines]
