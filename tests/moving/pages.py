"""The code blocks of the pages for people who come from other proxies, with addresses that a test can use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.llama_server import LlamaServer

__all__ = ["addresses", "block", "blocks", "page", "pointed_at"]

_DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    """The text of ``docs/NAME.md``."""
    return (_DOCS / f"{name}.md").read_text()


def blocks(text: str, language: str, title: str = "") -> list[str]:
    """The code blocks of ``language`` whose first line is the comment ``# TITLE``; without a title, all of them."""
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [one for one in found if not title or one.startswith(f"# {title}\n")]


def block(text: str, language: str, title: str) -> str:
    """The only such block.

    Raises:
        AssertionError: there is none, or more than one.
    """
    (only,) = blocks(text, language, title)
    return only


def pointed_at(text: str, addresses: Mapping[str, str]) -> str:
    """``text`` with each address (host and port) of the page replaced.

    Raises:
        AssertionError: the text has one of these addresses nowhere, so it is not what the test takes it for.
    """
    for documented, real in addresses.items():
        assert documented in text, f"{documented} is not in: {text}"
        text = text.replace(documented, real)
    return text


def addresses(engines: Sequence[LlamaServer], port: int = 8080) -> dict[str, str]:
    """The real address of each engine, by that on a page: ``llm-1:8080``, ``llm-2:8080``, ..."""
    return {f"llm-{number}:{port}": f"127.0.0.1:{engine.port}" for number, engine in enumerate(engines, 1)}
