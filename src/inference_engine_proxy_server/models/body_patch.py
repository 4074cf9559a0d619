"""Changes members of a JSON body in place: all bytes that no rule is about stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Raw

from inference_engine_proxy_server.models.rules import Kind, Rule, Rules, json_of
from inference_engine_proxy_server.requests.tolerant_json import Span, member_spans

__all__ = ["BodyPatch", "Edit", "applied"]

_NULL = b"null"
_NOTHING: frozenset[str] = frozenset()
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+\{[ \t\r\n]*+")


class Edit(NamedTuple):
    """A replacement of the bytes from ``start`` up to ``end``."""

    start: int
    end: int
    text: bytes


def applied(body: bytes, edits: Iterable[Edit]) -> bytes:
    """``body`` after ``edits``, which do not overlap."""
    pieces: list[bytes] = []
    at = 0
    for edit in sorted(edits):
        pieces += body[at : edit.start], edit.text
        at = edit.end
    return b"".join((*pieces, body[at:]))


class _Node:
    """The rules about one member, and about the members in it.

    Attributes:
        key: the member's name as JSON, with a colon.
        rule: about the member itself; ``None`` if rules are only about members in it.
        inner: by name.
    """

    __slots__ = ("inner", "key", "rule")

    def __init__(self, name: str = "") -> None:
        self.key = json_of(name) + b":"
        self.rule: Rule | None = None
        self.inner: dict[str, _Node] = {}

    @property
    def sets_something(self) -> bool:
        """Whether a value is set here, or in a member."""
        return (self.rule is not None and self.rule.kind is Kind.SET) or any(
            node.sets_something for node in self.inner.values()
        )

    def changes(self, value: Raw) -> bool:
        """Whether the member may change if the request has it with ``value``."""
        rule = self.rule
        if rule is None or rule.kind is Kind.REMOVE:
            return True
        if rule.kind is Kind.DEFAULT:
            return len(value) == len(_NULL) and bytes(value) == _NULL
        return len(value) != len(rule.value) or bytes(value) != rule.value

    def new_value(self, present: frozenset[str]) -> bytes | None:
        """The value of the member if the request has none; ``None`` if it is not added.

        Args:
            present: the names beside it that have values.
        """
        rule = self.rule
        if rule is not None and rule.kind is not Kind.REMOVE:
            return rule.value if present.isdisjoint(rule.unless) else None
        members = _new_members(self.inner.values(), _NOTHING) if self.inner else ()
        return b"{%b}" % b",".join(members) if members else None


class BodyPatch:
    """Rules, arranged as the members that they are about.

    Args:
        rules: by the path of the member.
    """

    __slots__ = ("_root",)

    def __init__(self, rules: Rules) -> None:
        self._root = _Node()
        for path, rule in rules.items():
            node = self._root
            for name in path:
                node = node.inner.setdefault(name, _Node(name))
            node.rule = rule

    def with_new_members(self, body: bytes, members: Mapping[str, Raw]) -> bytes | None:
        """``body`` with the rules applied, if they only add members; ``None`` if the places of its members are needed.

        Args:
            body: a JSON object without a byte-order mark that the decoder has accepted.
            members: its members, at least one.
        """
        added: list[bytes] = []
        for name, node in self._root.inner.items():
            value = members.get(name)
            if value is None:
                rule = node.rule
                if rule is not None and rule.unless and not members.keys().isdisjoint(rule.unless):
                    return None
                new = node.new_value(_NOTHING)
                if new is not None:
                    added += b",", node.key, new
            elif node.changes(value):
                return None
        if not added:
            return body
        end = body.rindex(b"}")
        return b"".join((body[:end], *added, body[end:]))

    def edits(self, body: bytes, spans: Sequence[Span]) -> list[Edit]:
        """The edits that apply the rules to ``body``.

        Args:
            body: a JSON object in UTF-8.
            spans: its members. If a name is repeated, the rules apply to each of its members.
        """
        edits: list[Edit] = []
        _edit_object(self._root, body, 0, spans, edits)
        return edits


def _edit_object(node: _Node, body: bytes, at: int, spans: Sequence[Span], edits: list[Edit]) -> None:
    """Add the edits of the object at ``at``."""
    inner = node.inner
    names = {span.name for span in spans}
    present = frozenset(span.name for span in spans if not _is_null(body, span))
    kept: Span | None = None  # the last member that stays
    leaving: Span | None = None  # the first of the members after it, which are removed
    for span in spans:
        child = inner.get(span.name)
        if child is not None and _edit_member(child, body, span, present, edits):
            leaving = leaving or span
            continue
        if leaving is not None:
            edits.append(Edit(leaving.at, span.at, b""))
            leaving = None
        kept = span
    added = _new_members([child for name, child in inner.items() if name not in names], present)
    if kept is not None:
        start = kept.end
        text = b"".join([b"," + member for member in added])
    else:
        opening = _OPENING.match(body, at)
        start = opening.end() if opening else at
        text = b",".join(added)
    end = spans[-1].end if leaving is not None else start
    if text or end > start:
        edits.append(Edit(start, end, text))


def _edit_member(node: _Node, body: bytes, span: Span, present: frozenset[str], edits: list[Edit]) -> bool:
    """Add the edits of one member. Returns whether it is removed instead."""
    rule, is_null = node.rule, _is_null(body, span)
    if rule is None and body[span.start : span.start + 1] == b"{":
        members = member_spans(body, span.start)
        if members is not None:
            _edit_object(node, body, span.start, members, edits)
            return False
    is_default = not node.sets_something if rule is None else rule.kind is Kind.DEFAULT
    if is_default and not is_null:
        return False
    value = node.new_value(present)
    if value is None:
        return rule is not None and rule.kind is Kind.REMOVE
    if value != body[span.start : span.end]:
        edits.append(Edit(span.start, span.end, value))
    return False


def _is_null(body: bytes, span: Span) -> bool:
    return span.end - span.start == len(_NULL) and body.startswith(_NULL, span.start)


def _new_members(nodes: Iterable[_Node], present: frozenset[str]) -> list[bytes]:
    return [node.key + value for node in nodes if (value := node.new_value(present)) is not None]
