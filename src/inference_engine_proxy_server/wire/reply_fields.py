"""Facts about a reply's body from its header lines and last block, and the header lines that the proxy adds."""

from __future__ import annotations

import re
from email.utils import formatdate

from inference_engine_proxy_server.wire.framing import ChunkedBody

__all__ = ["date_field", "ends_between_events", "is_encoded", "is_event_stream"]

_EVENT_STREAM = re.compile(rb"(?:^|\n)content-type:[ \t]*text/event-stream", re.IGNORECASE)
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_ENCODED = re.compile(rb"(?:^|\n)content-encoding:", re.IGNORECASE)


def date_field() -> bytes:
    """The ``Date`` line that RFC 9110, 6.6.1, requires of an origin server."""
    return f"date: {formatdate(usegmt=True)}\r\n".encode()


def is_encoded(fields: bytes) -> bool:
    """Whether header lines announce a content coding, such as a compression."""
    return _ENCODED.search(fields) is not None


def is_event_stream(fields: bytes) -> bool:
    """Whether header lines announce server-sent events without a content coding."""
    return _EVENT_STREAM.search(fields) is not None and _ENCODED.search(fields) is None


def ends_between_events(block: bytes, *, is_chunked: bool) -> bool:
    """Whether an event stream whose last block is ``block`` is between two events; ``block`` may be empty."""
    tail = b"".join(ChunkedBody().feed(block)) if is_chunked else block
    return not tail or tail.endswith(_EVENT_ENDS)
