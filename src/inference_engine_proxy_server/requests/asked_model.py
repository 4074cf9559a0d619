"""The model that a request asks for, where a wrong answer would let somebody use what he must not.

Routing may guess (:mod:`.requested_model`): an engine answers for itself. Here nothing may be left to guess: engines
take the first or the last of two, look into the query or the body, and read encodings that others do not. What could
be read in two ways names nothing.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import msgspec

from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["asked_model"]

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)
_JSON_BLANKS = b" \t\r\n"

_BOUNDARY = re.compile(rb'boundary(?:="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?(?=[;\r\n]))?', re.IGNORECASE)
_DISPOSITION = re.compile(rb"content-disposition", re.IGNORECASE)
_PLAIN_PART = re.compile(
    rb'\r\ncontent-disposition: form-data; name="([^"\\%\r\n]*)"(?:; filename="[^"\r\n]*")?\r\n', re.IGNORECASE
)
_REST_OF_PART = re.compile(rb"(?:[^\r\n]++\r\n)*+\r\n([^\r\n]{1,256})\r\n--")


def asked_model(head: RequestHead, body: bytes) -> str | None:
    """The one model that every engine would find in this request; ``None``: none, or not surely one."""
    names = [
        value
        for name, value in parse_qsl(head.target.partition(b"?")[2].decode(), keep_blank_values=True)
        if name.lower() == "model"
    ]
    if body:
        in_body = _in_form(head, body) if body.startswith(b"--") else _in_json(body)
        if in_body is None:
            return None
        names.append(in_body)
    return names[0] if len(set(names)) == 1 else None


def _in_json(body: bytes) -> str | None:
    """The member ``model`` of a JSON object in UTF-8, the last one as in all engines; none in another spelling."""
    try:
        members = _members.decode(body.strip(_JSON_BLANKS))
        if [name for name in members if name.lower() == "model"] != ["model"]:  # Go's library takes "Model", too
            return None
        return _text.decode(members["model"])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _in_form(head: RequestHead, body: bytes) -> str | None:
    """The field ``model`` of a form (audio), all of whose parts are described in the plainest way."""
    boundaries = _BOUNDARY.findall(head.passed_on)
    if len(boundaries) != 1 or not boundaries[0] or not body.startswith(b"--%b\r\n" % boundaries[0]):
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
