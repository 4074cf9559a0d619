"""Reads the fields of multipart forms (RFC 7578), such as audio transcriptions, in every notation engines accept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.message import Message
from email.utils import collapse_rfc2231_value
from urllib.parse import quote, unquote_plus

__all__ = ["URLENCODED", "form_values", "is_form", "media_type", "with_field", "with_parameter"]

URLENCODED = "application/x-www-form-urlencoded"
"""The media type of forms without files."""

_MOST_PARTS = 1000  # as in Starlette, on which vLLM is built
_CONTENT_TYPE = re.compile(rb"(?:^|\n)content-type:[ \t]*([^\r\n]*?)[ \t]*(?=\r|$)", re.IGNORECASE)
_DISPOSITION = re.compile(rb"(?:^|\n)content-disposition[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_AFTER_BOUNDARY = re.compile(rb"[ \t]*+\r\n|--")


def media_type(header_lines: bytes) -> str:
    """The media type in ``Content-Type``, in lower case and without parameters; empty unless there is exactly one."""
    found = _CONTENT_TYPE.findall(header_lines)
    return found[0].partition(b";")[0].strip().lower().decode("latin-1") if len(found) == 1 else ""


def is_form(header_lines: bytes) -> bool:
    """Whether the body is a multipart form."""
    return media_type(header_lines) == "multipart/form-data"


def form_values(header_lines: bytes, body: bytes, name: str) -> list[str] | None:
    """The values of all fields called ``name``; ``None`` when the form cannot be read.

    Args:
        header_lines: the request's header lines, each ending in CRLF.
        body: the whole body; text before the first boundary and after the last one is ignored.
        name: the name of the fields.
    """
    boundary = _boundary(header_lines)
    if not boundary:
        return None
    values, count = [], 0
    for head, start, end in _parts(body, b"--" + boundary):
        count += 1
        if _name_of(head) == name:
            values.append(body[start:end].decode(errors="replace"))
        if count > _MOST_PARTS:
            break
    return values if 0 < count <= _MOST_PARTS else None


def with_field(header_lines: bytes, body: bytes, name: str, value: str) -> bytes:
    """The multipart form ``body`` with ``value`` in all fields called ``name``."""
    boundary = _boundary(header_lines)
    pieces: list[bytes] = []
    at = 0
    for head, start, end in _parts(body, b"--" + boundary) if boundary else ():
        if _name_of(head) == name:
            pieces += body[at:start], value.encode()
            at = end
    return b"".join((*pieces, body[at:]))


def with_parameter(text: bytes, name: str, value: str) -> bytes:
    """The query, or form of the type ``URLENCODED``, with ``value`` in all parameters called ``name``."""
    pairs = text.split(b"&")
    for at, pair in enumerate(pairs):
        if unquote_plus(pair.partition(b"=")[0].decode("latin-1")) == name:
            pairs[at] = b"%b=%b" % (pair.partition(b"=")[0], quote(value, safe="").encode())
    return b"&".join(pairs)


def _boundary(header_lines: bytes) -> bytes:
    found = _CONTENT_TYPE.findall(header_lines)
    return _parameter(found[0], "boundary").encode() if len(found) == 1 else b""


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The header lines of each part that is complete, and where its content begins and ends."""
    at = 0 if body.startswith(delimiter) else _next_delimiter(body, delimiter, 0)[1] - len(delimiter)
    while at >= 0:
        line = _AFTER_BOUNDARY.match(body, at + len(delimiter))
        if line is None or line[0] == b"--":
            return
        end, following = _next_delimiter(body, delimiter, line.end() - 2)
        if end < 0:
            return
        head, _, value = body[line.end() - 2 : end].partition(b"\r\n\r\n")
        yield head[2:], end - len(value), end
        at = following - len(delimiter)


def _next_delimiter(body: bytes, delimiter: bytes, at: int) -> tuple[int, int]:
    """The end of the content before the next delimiter line, and the end of the delimiter; -1 if there is none."""
    while (at := body.find(b"\r\n" + delimiter, at)) >= 0:
        end = at + 2 + len(delimiter)
        if _AFTER_BOUNDARY.match(body, end):
            return at, end
        at = end
    return -1, -1


def _name_of(head: bytes) -> str | None:
    found = _DISPOSITION.search(head)
    return None if found is None else _parameter(found[1], "name")


def _parameter(value: bytes, name: str) -> str:
    """A parameter of a header, in any notation (RFC 2231 and RFC 9110); empty when it is missing."""
    message = Message()
    message["x"] = value.decode(errors="replace").replace("\r", " ").replace("\n", " ")
    found = message.get_param(name, header="x")
    return "" if found is None else collapse_rfc2231_value(found)
