"""Finds the model that a request names, for routing; the body is read, never rebuilt.

Routing may guess, because the engine checks the name again. :mod:`.unambiguous_model` is for permissions.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from inference_engine_proxy_server.requests.json_body import read_members

__all__ = ["requested_model"]

_MULTIPART_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n')
_MULTIPART_SEARCH_BYTES = 1 << 20  # the fields of a form come before or after its file, and audio files are longer


def requested_model(target: bytes, body: bytes) -> str | None:
    """The model that a request names; ``None`` when it names none.

    Reads the ``model`` member of a JSON object, the ``model`` part of a form (audio transcription), or the ``model``
    parameter of the query (llama.cpp's router mode: ``GET /props?model=...``). Malformed JSON names no model: the
    engine reports the error.
    """
    if body[:1] == b"{" or body[:64].lstrip()[:1] == b"{":
        model = read_members(body).model
        return model if isinstance(model, str) else None
    if body.startswith(b"--"):
        part = _MULTIPART_MODEL.search(body[:_MULTIPART_SEARCH_BYTES]) or _MULTIPART_MODEL.search(
            body[-_MULTIPART_SEARCH_BYTES:]
        )
        return part[1].decode(errors="replace") if part else None
    query = target.partition(b"?")[2]
    if b"model=" in query:
        return parse_qs(query.decode()).get("model", [None])[0]
    return None
