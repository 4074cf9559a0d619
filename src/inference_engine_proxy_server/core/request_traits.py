"""What routing may know of a request. The body's bytes are read, never rebuilt."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

import msgspec

__all__ = ["needs_slot", "requested_model"]

_MULTIPART_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n')
_MULTIPART_SEARCH_BYTES = 1 << 20  # form fields stand before or after the file; a file of audio is longer than this


# What engines answer beside their work, without a slot (llama.cpp) or a place in the schedule (vLLM).
_LIGHT_PATHS = frozenset(
    prefix + path
    for prefix in ("", "/v1")
    for path in ("/tokenize", "/detokenize", "/apply-template", "/messages/count_tokens")
)


def needs_slot(method: str, path: str) -> bool:
    """Whether a request takes one of the places that a backend works on at a time."""
    return method == "POST" and path not in _LIGHT_PATHS


class _Named(msgspec.Struct):
    model: str | None = None


_decoder = msgspec.json.Decoder(_Named)


def requested_model(target: bytes, body: bytes) -> str | None:
    """The model that a request names; ``None`` when it names none that can be found.

    Looks at the ``model`` member of a JSON object, the ``model`` part of a form (audio transcription), or the
    ``model`` parameter of the query (llama.cpp's router mode: ``GET /props?model=...``). A body that is not valid JSON
    names nothing: the engine will say what is wrong with it.
    """
    if body.startswith(b"{") or body[:64].lstrip().startswith(b"{"):
        try:
            return _decoder.decode(body).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    if body.startswith(b"--"):
        part = _MULTIPART_MODEL.search(body[:_MULTIPART_SEARCH_BYTES]) or _MULTIPART_MODEL.search(
            body[-_MULTIPART_SEARCH_BYTES:]
        )
        return part[1].decode(errors="replace") if part else None
    query = target.partition(b"?")[2]
    if b"model=" in query:
        return parse_qs(query.decode()).get("model", [None])[0]
    return None
