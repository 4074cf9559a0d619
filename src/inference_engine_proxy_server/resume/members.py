"""Reads the members of a request's body, which is decoded only as far as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

__all__ = ["Members", "has", "largest", "number", "reduced", "texts", "value"]

Members = Mapping[str, msgspec.Raw]
"""The members of a request's body, undecoded."""


def value(members: Members, name: str) -> Any:
    """A decoded member; ``None`` if it is missing or no JSON. The engine rejects the latter."""
    raw = members.get(name)
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None


def number(members: Members, name: str) -> int | None:
    """A member that is a count; ``None`` if it is none. Engines take a negative number as no limit."""
    raw = members.get(name)
    try:
        found = None if raw is None else msgspec.json.decode(raw, type=int | None)
    except msgspec.DecodeError:
        return None
    return None if found is None or found < 0 else found


def texts(members: Members, name: str) -> list[str]:
    """A member that is a text or a list of texts; empty if it is neither."""
    found = value(members, name)
    listed = found if isinstance(found, list) else [found]
    return [one for one in listed if isinstance(one, str)]


def largest(members: Members, names: Iterable[str]) -> int | None:
    """The largest count among these members; ``None`` if none of them is a count."""
    return max((found for name in names if (found := number(members, name)) is not None), default=None)


def reduced(members: Members, names: Iterable[str], by: int) -> dict[str, object]:
    """All members; those with these names are reduced, but not below 1."""
    body: dict[str, object] = dict(members)
    for name in names:
        if (found := number(members, name)) is not None:
            body[name] = max(1, found - by)
    return body


def has(*names: str) -> Callable[[Members], bool]:
    """A test for members with a value that is not false, zero or empty."""
    return lambda members: any(value(members, name) for name in names)
