"""Header field parsing shared by requests and replies. Sans-I/O.

One pattern accepts or rejects the whole section. A second pattern finds the fields that concern the connection rather
than the message (RFC 9110, 7.6.1); these are cut out, and all other bytes are forwarded unchanged. The proxy always
writes its own framing fields instead of copying the received ones, so sender and receiver cannot be led to disagree
about framing (RFC 9112, 11.2).

Parsing is stricter than RFC 9112 wherever leniency has enabled request smuggling: a bare LF, a bare CR, folded lines,
whitespace before a colon, two Content-Length fields, and Content-Length with Transfer-Encoding are rejected.
"""

from __future__ import annotations

import re

__all__ = ["FIELD_LINES", "LENGTH", "TOKEN", "TwiceError", "cut", "named_by", "owned_fields"]

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
FIELD_LINES = rb"((?:" + TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)"
LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")

_HOP_BY_HOP = rb"connection|keep-alive|proxy-connection|te|trailer|transfer-encoding|upgrade"
_VALUE = rb":[ \t]*+([^\r]*[^\r\t ]|)[ \t]*+\r"
_ONCE = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"host",
        b"expect",
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"x-admin-key",
    }
)


class TwiceError(Exception):
    """A field that may occur only once occurs twice; the exception's text is the field's name."""


def owned_fields(names: bytes) -> re.Pattern[bytes]:
    """A pattern for hop-by-hop fields and the fields in ``names`` (regex alternatives in lower case).

    A match is one field line, from the line feed before it to its own carriage return. Group 2 is the value without
    surrounding whitespace.
    """
    return re.compile(rb"\n(" + _HOP_BY_HOP + rb"|" + names + rb")" + _VALUE, re.IGNORECASE)


def cut(lines: bytes, ours: re.Pattern[bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    """Split field lines into those to forward and those for the proxy itself.

    Args:
        lines: starting with the line feed before the first field, so that all fields match alike.
        ours: pattern of the fields for the proxy.

    Returns:
        The lines to forward, and the proxy's fields as a map from lower-case name to value.

    Raises:
        TwiceError: a field that may occur only once occurs twice.
    """
    parts = ours.split(lines)  # forwarded text, name, value, forwarded text, name, value, ..., forwarded text
    names = parts[1::3]
    owned = dict(zip(map(bytes.lower, names), parts[2::3], strict=True))
    if len(owned) != len(names):
        owned = _joined(names, parts[2::3])
    passed_on = b"".join(parts[::3])[1:]
    connection = owned.get(b"connection")
    if connection is not None and connection.lower() not in (b"keep-alive", b"close"):
        passed_on = _without_named(passed_on, connection)
    return passed_on, owned


def named_by(connection: bytes) -> set[bytes]:
    """The options of a Connection field, which include the names of fields meant for the next hop only."""
    return {option.strip().lower() for option in connection.split(b",")}


def _joined(names: list[bytes], values: list[bytes]) -> dict[bytes, bytes]:
    """Map lower-case names to values; values of repeated fields are joined, as RFC 9110, 5.3, allows for lists."""
    owned: dict[bytes, bytes] = {}
    for name, value in zip(map(bytes.lower, names), values, strict=True):
        if name in owned and name in _ONCE:
            raise TwiceError(name.decode())
        owned[name] = owned[name] + b"," + value if name in owned else value
    return owned


def _without_named(lines: bytes, connection: bytes) -> bytes:
    """``lines`` without the fields that the Connection field names."""
    named = named_by(connection)
    return b"".join(line for line in lines.splitlines(keepends=True) if line.partition(b":")[0].lower() not in named)
