"""Field lines of header sections, as both sides of the proxy read them.

Sans-I/O. The strategy: one pattern accepts or refuses the whole section, a second one finds the fields that
concern the connection rather than the message (RFC 9110, 7.6.1); those are cut out, everything between them
is passed on as the bytes it came in. What frames the message onward is always written anew, never copied,
so no disagreement about framing can pass through (RFC 9112, 11.2).

Stricter than RFC 9112 allows where leniency has been used for request smuggling: a bare LF, a bare CR, folded
lines, blanks before a colon, two Content-Length fields and Content-Length beside Transfer-Encoding are refused.
"""

from __future__ import annotations

import re

__all__ = ["FIELD_LINES", "LENGTH", "TOKEN", "TwiceError", "cut", "named_by", "owned_fields"]

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
FIELD_LINES = rb"((?:" + TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)"
LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")

_HOP_BY_HOP = rb"connection|keep-alive|proxy-connection|te|trailer|transfer-encoding|upgrade"
_VALUE = rb":[ \t]*+([^\r]*[^\r\t ]|)[ \t]*+\r"
_ONCE = frozenset({b"content-length", b"transfer-encoding", b"host", b"expect", b"authorization", b"x-api-key"})


class TwiceError(Exception):
    """A field is there twice that may be there once; the text is its name."""


def owned_fields(names: bytes) -> re.Pattern[bytes]:
    """A pattern for the fields about the connection, and those of ``names``, alternatives in lower case.

    It matches one field line, from the line feed before it to its own carriage return; its value without blanks around.
    """
    return re.compile(rb"\n(" + _HOP_BY_HOP + rb"|" + names + rb")" + _VALUE, re.IGNORECASE)


def cut(lines: bytes, ours: re.Pattern[bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    """Split field lines into those to pass on and those that are ours to read (by lower-case name).

    Args:
        lines: with the line feed before the first one, so that all begin alike.
        ours: which are ours.

    Raises:
        TwiceError: a field that may be there once is there twice.
    """
    parts = ours.split(lines)  # text to keep, name, value, text to keep, name, value, ..., text to keep
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
    """The options of a Connection field, among them names of fields that are for the next hop alone."""
    return {option.strip().lower() for option in connection.split(b",")}


def _joined(names: list[bytes], values: list[bytes]) -> dict[bytes, bytes]:
    """The values by lower-case name where some come more than once, joined as RFC 9110, 5.3, allows for lists."""
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
