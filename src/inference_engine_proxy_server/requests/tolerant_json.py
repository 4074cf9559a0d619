"""Reads the top-level members of JSON that a strict decoder rejects, but some engine accepts.

Python's decoder (vLLM) accepts NaN, lone surrogates, UTF-16 and UTF-32; llama.cpp's accepts deep nesting; both accept a
byte-order mark. An engine that rejects such a body reports the error itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Span", "as_utf8", "member_spans", "member_text", "tolerant_members"]

_MOST_STEPS = 200_000  # brackets, members and nested strings; bounds the time that one body may take to about 0.1 s
_BLANKS = b" \t\r\n"
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_START = re.compile(rb"[ \t\r\n]*+\{[ \t\r\n]*+")
_KEY = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_NESTED = re.compile(rb'[^"\[\]{}]*+(?:' + _STRING + rb"|([\[{])|([\]}]))", re.DOTALL)
_SCALAR = re.compile(_STRING + rb'|[^\[\]{},"]++', re.DOTALL)
_NEXT = re.compile(rb"[ \t\r\n]*+([,}])[ \t\r\n]*+")


def as_utf8(body: bytes) -> bytes:
    """``body`` in UTF-8 without a byte-order mark, from any encoding of JSON (RFC 4627, section 3)."""
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body
    return body.decode(encoding, "replace").encode()


class Span(NamedTuple):
    """The place of one member of an object in a text.

    Attributes:
        name: of the member.
        at: where its name begins, at the quotation mark.
        start, end: of its value, without blanks around it.
    """

    name: str
    at: int
    start: int
    end: int


def tolerant_members(body: bytes) -> Mapping[str, bytes] | None:
    """Every top-level member by name (of equal names, the last); ``None`` if ``body`` is not an object or is cut off.

    Args:
        body: in UTF-8. Values are returned as sent, without trailing blanks, and are not checked.
    """
    spans = member_spans(body)
    return None if spans is None else {span.name: body[span.start : span.end] for span in spans}


def member_spans(body: bytes, at: int = 0) -> Sequence[Span] | None:
    """The places of the members of an object, in their order; ``None`` if there is no object, or it is cut off.

    Args:
        body: in UTF-8. Its values are not checked, and what follows the object is ignored.
        at: where the object begins, or blanks before it.
    """
    start = _START.match(body, at)
    if start is None:
        return None
    spans: list[Span] = []
    at, steps = start.end(), 0
    if body[at : at + 1] == b"}":
        return spans
    while steps < _MOST_STEPS:
        key = _KEY.match(body, at)
        if key is None:
            return None
        end, steps = _end_of_value(body, key.end(), steps + 1)
        following = _NEXT.match(body, end)
        if following is None:
            return None
        value = body[key.end() : end].rstrip(_BLANKS)
        spans.append(Span(_text(key[1]), key.start(1), key.end(), key.end() + len(value)))
        if following[1] == b"}":
            return spans
        at = following.end()
    return None


def member_text(raw: bytes | None) -> str | None:
    """The text of a member that is a string; ``None`` when it is another value, or not UTF-8."""
    if not raw or not raw.startswith(b'"'):
        return None
    try:
        raw.decode()
    except UnicodeDecodeError:
        return None
    return _text(raw)


def _end_of_value(body: bytes, at: int, steps: int) -> tuple[int, int]:
    """Where the value at ``at`` ends, and the number of steps so far; beyond the body when it does not end."""
    if body[at : at + 1] not in (b"{", b"["):
        scalar = _SCALAR.match(body, at)
        return (scalar.end() if scalar else len(body)), steps
    depth = 0
    while steps < _MOST_STEPS:
        steps += 1
        token = _NESTED.match(body, at)
        if token is None:
            break
        at = token.end()
        depth += (token[1] is not None) - (token[2] is not None)
        if not depth:
            return at, steps
    return len(body), steps


def _text(raw: bytes) -> str:
    """The text of a JSON string, with replacement characters for what is not Unicode."""
    try:
        text: str = json.loads(raw.decode(errors="replace"), strict=False)
    except ValueError:
        return raw.decode(errors="replace")
    return text.encode(errors="surrogatepass").decode(errors="replace")
