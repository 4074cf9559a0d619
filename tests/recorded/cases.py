"""What each engine answers, and what it means: the ``engine.toml`` of each directory beside this file.

README.md in this directory describes the form.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_engine_proxy_server.backends.base import Reply
from recorded import recorded

__all__ = ["CASES", "SITUATIONS", "Answer", "Case", "Situation"]

SITUATIONS = ("busy", "overloaded", "loading", "without_metrics", "without_key")
"""Each engine has an entry for each of these, or says why there is none. Engines may have further ones."""

Answer = Reply | Exception
_ERRORS = {"timeout": TimeoutError, "refused": ConnectionRefusedError, "reset": ConnectionResetError}


@dataclass(frozen=True)
class Situation:
    """One situation of a server.

    Attributes:
        answers: by path.
        state: attributes of the ``BackendState`` that must be reported, in the words of README.md.
        absent: why the engine has no such situation; empty if it has.
        error: the name of the error that must be raised instead of a state; empty for none.
    """

    answers: Mapping[str, Answer]
    state: Mapping[str, Any]
    absent: str = ""
    error: str = ""


@dataclass(frozen=True)
class Case:
    """One kind of server, as README.md describes it."""

    name: str
    engine: str
    version: str
    sources: tuple[str, ...]
    health: frozenset[str]
    is_identified: bool
    questions: int
    ready: Situation
    situations: Mapping[str, Situation]
    tokens: tuple[Mapping[str, Any], ...]


def _read(path: Path) -> Case:
    table = tomllib.loads(path.read_text())
    name = path.parent.name
    answers = {asked: _answer(name, told) for asked, told in table["replies"].items()}
    return Case(
        name=name,
        engine=table["engine"],
        version=table["version"],
        sources=tuple(table["sources"]),
        health=frozenset(table.get("health", ["/health"])),
        is_identified=table.get("is_identified", True),
        questions=table.get("questions", 2),
        ready=Situation(answers, table["state"]),
        situations={key: _situation(name, answers, one) for key, one in table.get("situations", {}).items()},
        tokens=tuple(table.get("tokens", ())),
    )


def _situation(name: str, usual: Mapping[str, Answer], table: Mapping[str, Any]) -> Situation:
    changed = {asked: _answer(name, told) for asked, told in table.get("replies", {}).items()}
    kept = {asked: answer for asked, answer in usual.items() if asked not in table.get("without", ())}
    return Situation({**kept, **changed}, table.get("state", {}), table.get("absent", ""), table.get("error", ""))


def _answer(name: str, told: str | Mapping[str, Any]) -> Answer:
    if isinstance(told, str):
        return recorded(name, told)
    if "error" in told:
        return _ERRORS[told["error"]]()
    return Reply(told.get("status", 200), told.get("body", "").encode(), told.get("fields", "").encode())


CASES = tuple(_read(path) for path in sorted(Path(__file__).parent.glob("*/engine.toml")))
