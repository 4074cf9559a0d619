"""Header lines of replies: those that the proxy adds, and those that say how to read the body."""

from __future__ import annotations

import re
from email.utils import formatdate

__all__ = ["date_field", "is_event_stream"]

_EVENT_STREAM = re.compile(rb"(?:^|\n)content-type:[ \t]*text/event-stream", re.IGNORECASE)
_ENCODED = re.compile(rb"(?:^|\n)content-encoding:", re.IGNORECASE)


def date_field() -> bytes:
    """The ``Date`` line that RFC 9110, 6.6.1, requires of an origin server."""
    return f"date: {formatdate(usegmt=True)}\r\n".encode()


def is_event_stream(fields: bytes) -> bool:
    """Whether header lines announce server-sent events without a content coding."""
    return _EVENT_STREAM.search(fields) is not None and _ENCODED.search(fields) is None
