"""Event streams of OpenAI's completion APIs: splits, reads and writes their events."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

__all__ = [
    "ABSENT",
    "DONE",
    "MALFORMED",
    "Choice",
    "StreamEvent",
    "data_of",
    "event_of",
    "is_done",
    "read_event",
    "split_events",
]

ABSENT = msgspec.Raw()
DONE = b"data: [DONE]\n\n"
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError)
"""Raised for data that is no event of a completion."""

_EVENTS = re.compile(rb".*?(?:\n\n|\r\n\r\n|\r\r)", re.DOTALL)
_DATA = re.compile(rb"(?:^|[\r\n])data:[ ]?([^\r\n]*)")


class Choice(msgspec.Struct):
    """One choice of an event.

    Attributes:
        text: the new text in ``/v1/completions``.
        delta: the new members of the message in ``/v1/chat/completions``.
    """

    index: int = 0
    finish_reason: str | None = None
    text: str | None = None
    delta: dict[str, msgspec.Raw] | None = None


class StreamEvent(msgspec.Struct):
    """One event; members that are absent are empty, or ``None``."""

    choices: list[Choice] | None = None
    id: msgspec.Raw = ABSENT
    created: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT
    object: msgspec.Raw = ABSENT
    system_fingerprint: msgspec.Raw = ABSENT
    usage: dict[str, msgspec.Raw] | None = None
    timings: dict[str, msgspec.Raw] | None = None
    error: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(StreamEvent).decode


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


def is_done(data: bytes) -> bool:
    """Whether this is the data of the last event."""
    return data.strip() == b"[DONE]"


def read_event(data: bytes) -> StreamEvent:
    """The event with this data.

    Raises:
        msgspec.DecodeError: it is no event of a completion.
    """
    return _decode(data)


def event_of(members: Mapping[str, object]) -> bytes:
    """An event whose data is a JSON object; values may be raw JSON."""
    return b"data: " + msgspec.json.encode(members) + b"\n\n"
