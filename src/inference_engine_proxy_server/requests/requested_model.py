"""What routing may know of a request. The body's bytes are read, never rebuilt."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

import msgspec

__all__ = ["requested_model"]

_MULTIPART_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n')
_MULTIPART_SEARCH_BYTES = 1 << 20  # form fields stand before or after the file; a file of audio is longer than this


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
