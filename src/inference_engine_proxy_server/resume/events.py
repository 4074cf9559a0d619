"""Event streams: splits, reads and writes their events."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

__all__ = [
    "ABSENT",
    "MALFORMED",
    "data_of",
    "event_of",
    "is_about_request",
    "name_of",
    "named_event_of",
    "split_events",
]

ABSENT = msgspec.Raw()
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError)
"""Raised for data that is no event of the API."""

_EVENTS = re.compile(rb".*?(?:\n\n|\r\n\r\n|\r\r)", re.DOTALL)
_DATA = re.compile(rb"(?:^|[\r\n])data:[ ]?([^\r\n]*)")
_NAME = re.compile(rb"(?:^|[\r\n])event:[ ]?([^\r\n]*)")


def split_events(block: bytes) -> tuple[list[bytes], bytes]:
    """The whole events in ``block``, each with its blank line, and the bytes after the last one."""
    if b"\r" not in block:
        *events, rest = block.split(b"\n\n")
        return [event + b"\n\n" for event in events], rest
    events = _EVENTS.findall(block)
    return events, block[sum(map(len, events)) :]


def data_of(event: bytes) -> bytes | None:
    """The data of an event; ``None`` if it has none, such as a comment."""
    if event.startswith(b"data: ") and (end := event.find(b"\n")) == len(event) - 2:
        return event[6:end]  # one line, as all known engines write it
    lines = _DATA.findall(event)
    return b"\n".join(lines) if lines else None


def name_of(event: bytes) -> bytes | None:
    """The name in the event's ``event:`` line; ``None`` without one."""
    found = _NAME.search(event)
    return None if found is None else found[1]


def event_of(members: Mapping[str, object]) -> bytes:
    """An event whose data is a JSON object; values may be raw JSON."""
    return b"data: " + msgspec.json.encode(members) + b"\n\n"


def named_event_of(members: Mapping[str, object]) -> bytes:
    """An event that also has its ``type`` as its name, as in Anthropic's messages and OpenAI's responses."""
    kind = members["type"]
    name = msgspec.json.decode(kind, type=str) if isinstance(kind, msgspec.Raw) else str(kind)
    return b"event: " + name.encode() + b"\n" + event_of(members)


def is_about_request(error: msgspec.Raw) -> bool:
    """Whether an error of OpenAI's form has a status below 500, so that no other backend would do better."""
    members = msgspec.json.decode(error)
    code = members.get("code") if isinstance(members, dict) else None
    return isinstance(code, int) and 400 <= code < 500
