"""Adds a system prompt to requests that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from inference_engine_proxy_server.models.body_patch import Edit
from inference_engine_proxy_server.models.dialects import Dialect
from inference_engine_proxy_server.models.rules import json_of
from inference_engine_proxy_server.requests.content import read_list, role_of
from inference_engine_proxy_server.requests.tolerant_json import Span

__all__ = ["SystemPrompt"]

_EMPTY = (b"null", b'""', b"[]")
_ROLES = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """A system prompt as one API takes it.

    Attributes:
        member: the member that holds it, or ``messages``.
        turns: the member that holds the messages, one of which may be a system prompt.
        text: the prompt as JSON.
    """

    member: str
    turns: str
    text: bytes

    @classmethod
    def of(cls, text: str | None, dialect: Dialect) -> SystemPrompt | None:
        """The prompt in ``dialect``; ``None`` if there is none, or the API has none."""
        if text is None or dialect.system is None:
            return None
        return cls(dialect.system, dialect.turns, json_of(text))

    def edits(self, body: bytes, spans: Sequence[Span]) -> list[Edit]:
        """The edit that adds the prompt; empty if the request has one, or no messages.

        Args:
            body: a JSON object in UTF-8.
            spans: its members.
        """
        members = {span.name: span for span in spans}  # of equal names, engines take the last
        turns = members.get(self.turns)
        if turns is None or _has_system_turn(body[turns.start : turns.end]):
            return []
        if self.member == self.turns:
            return self._as_turn(body, turns)
        own = members.get(self.member)
        if own is None:
            return [Edit(turns.at, turns.at, b"%b:%b," % (json_of(self.member), self.text))]
        is_empty = body[own.start : own.end] in _EMPTY
        return [Edit(own.start, own.end, self.text)] if is_empty else []

    def _as_turn(self, body: bytes, turns: Span) -> list[Edit]:
        start = turns.start + 1
        is_list = body[turns.start : start] == b"[" and body[start : turns.end - 1].strip()
        return [Edit(start, start, b'{"role":"system","content":%b},' % self.text)] if is_list else []


def _has_system_turn(turns: bytes) -> bool:
    """Whether a message is a system prompt; ``False`` for what is no list of messages, such as text."""
    if not turns.startswith(b"["):
        return False
    try:
        return any(role_of(message) in _ROLES for message in read_list(msgspec.Raw(turns)))
    except (ValueError, RecursionError):  # no message, or one that only some engines read
        return b'"system"' in turns or b'"developer"' in turns
