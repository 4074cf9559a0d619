"""Finds the model that a request names, for permissions: a wrong answer would let a client use a forbidden model.

Routing may guess the model (:mod:`.content`), but permissions may not. Engines differ: some take the first of two
names, others the last, some read the query and others the body, and some accept encodings that others reject. A request
that two engines could read differently names no model here.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from urllib.parse import parse_qsl

from inference_engine_proxy_server.requests.content import all_members, read_content, read_text
from inference_engine_proxy_server.requests.headers import multipart_boundary

__all__ = ["unambiguous_model"]

_DISPOSITION = re.compile(rb"content-disposition", re.IGNORECASE)
_PLAIN_PART = re.compile(
    rb'\r\ncontent-disposition: form-data; name="([^"\\%\r\n]*)"(?:; filename="[^"\r\n]*")?\r\n', re.IGNORECASE
)
_REST_OF_PART = re.compile(rb"(?:[^\r\n]++\r\n)*+\r\n([^\r\n]{1,256})\r\n--")


def unambiguous_model(target: bytes, header_lines: bytes, body: bytes) -> str | None:
    """The model that every engine would find in this request; ``None`` when there is none, or engines could differ.

    Args:
        target: path and query as sent.
        header_lines: the request's header lines, each ending in CRLF.
        body: the whole body.
    """
    names = [
        value
        for name, value in parse_qsl(target.partition(b"?")[2].decode(), keep_blank_values=True)
        if name.lower() == "model"
    ]
    if body:
        in_body = _in_form(header_lines, body) if body.startswith(b"--") else _in_json(body)
        if in_body is None:
            return None
        names.append(in_body)
    if len(set(names)) != 1:
        return None
    name = names[0]
    # Routing must find the same model.
    return name if (read_content(target, body, header_lines).model or "") == name else None


def _in_json(body: bytes) -> str | None:
    """The ``model`` of a JSON object in UTF-8. Of equal names the last counts, as in all engines."""
    members = all_members(body.removeprefix(BOM_UTF8)) or {}
    if [name for name in members if name.lower() == "model"] != ["model"]:  # Go's JSON library also accepts "Model"
        return None
    return read_text(members["model"])


def _in_form(header_lines: bytes, body: bytes) -> str | None:
    """The ``model`` field of a form (audio) whose parts all use the plainest notation."""
    boundary = multipart_boundary(header_lines)
    if boundary is None or not body.startswith(b"--%b\r\n" % boundary):
        return None
    parts = list(_PLAIN_PART.finditer(body))
    named = [part for part in parts if part[1].lower() == b"model"]
    if len(parts) != len(_DISPOSITION.findall(body)) or len(named) != 1 or named[0][1] != b"model":
        return None
    value = _REST_OF_PART.match(body, named[0].end())
    try:
        return value[1].decode() if value else None
    except UnicodeDecodeError:
        return None
