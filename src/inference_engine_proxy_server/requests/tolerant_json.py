"""Reads the top-level members of JSON that a strict decoder rejects, but some engine accepts.

Python's decoder (vLLM) accepts NaN, lone surrogates, UTF-16 and UTF-32; llama.cpp's accepts deep nesting; both accept a
byte-order mark. An engine that rejects such a body reports the error itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

__all__ = ["as_utf8", "member_text", "tolerant_members"]

_MOST_STEPS = 200_000  # brackets, members and nested strings; bounds the time that one body may take to about 0.1 s
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


def tolerant_members(body: bytes) -> Mapping[str, bytes] | None:
    """Every top-level member by name (of equal names, the last); ``None`` if ``body`` is not an object or is cut off.

    Args:
        body: in UTF-8. Values are returned as sent, without trailing blanks, and are not checked.
    """
    start = _START.match(body)
    if start is None:
        return None
    members: dict[str, bytes] = {}
    at, steps = start.end(), 0
    if body[at : at + 1] == b"}":
        return members
    while steps < _MOST_STEPS:
        key = _KEY.match(body, at)
        if key is None:
            return None
        end, steps = _end_of_value(body, key.end(), steps + 1)
        following = _NEXT.match(body, end)
        if following is None:
            return None
        members[_text(key[1])] = body[key.end() : end].rstrip()
        if following[1] == b"}":
            return members
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
