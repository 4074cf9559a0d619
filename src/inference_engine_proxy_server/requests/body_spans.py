"""Finds the members of a JSON body in its bytes, so that they can be replaced where they are.

msgspec's decoder finds the values, and this module finds their places: it compares each value with the bytes at the
place where it should be. A body that the decoder rejects, or that repeats a name, takes the slower way through
:mod:`.tolerant_json`.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence

from msgspec import Raw

from inference_engine_proxy_server.requests.content import all_members
from inference_engine_proxy_server.requests.tolerant_json import Span, as_utf8, member_spans

__all__ = ["body_spans", "in_utf8"]

_START = re.compile(rb"[ \t\r\n]*+\{[ \t\r\n]*+")
_KEY = re.compile(rb'"([^"\\]*+)"[ \t\r\n]*+:[ \t\r\n]*+')
_NEXT = re.compile(rb"[ \t\r\n]*+,[ \t\r\n]*+")
_END = re.compile(rb"[ \t\r\n]*+\}[ \t\r\n]*+")


def in_utf8(body: bytes) -> bytes:
    """``body`` in UTF-8; the same object if it is in UTF-8, with or without a byte-order mark."""
    is_usual = body[:1] == b"{" and body[1:2] != b"\0"
    return body if is_usual or body.startswith(BOM_UTF8) else as_utf8(body)


def body_spans(body: bytes, members: Mapping[str, Raw] | None = None) -> Sequence[Span] | None:
    """The places of all members of a JSON object; ``None`` if ``body`` is not an object, or cannot be read.

    Args:
        body: in UTF-8. Values are not checked.
        members: those that the decoder has found in ``body``; ``None`` if it has not been decoded.
    """
    at = len(BOM_UTF8) if body.startswith(BOM_UTF8) else 0
    if members is None:
        members = all_members(body[at:] if at else body)
    return _distinct_spans(body, at, members) or member_spans(body, at)


def _distinct_spans(body: bytes, at: int, members: Mapping[str, Raw] | None) -> Sequence[Span] | None:
    """The spans, if the body is valid JSON, its names are distinct, and none of them has an escape."""
    start = _START.match(body, at)
    if not members or start is None:
        return None
    spans: list[Span] = []
    at = start.end()
    for name, raw in members.items():
        key = _KEY.match(body, at)
        if key is None or key[1] != name.encode():
            return None
        value = bytes(raw)
        end = key.end() + len(value)
        if not body.startswith(value, key.end()):
            return None
        spans.append(Span(name, at, key.end(), end))
        following = _NEXT.match(body, end)
        if following is None:
            break
        at = following.end()
    last = _END.match(body, spans[-1].end)
    is_whole = len(spans) == len(members) and last is not None and last.end() == len(body)
    return spans if is_whole else None
