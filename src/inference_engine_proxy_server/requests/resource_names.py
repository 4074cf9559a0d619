"""What a request names that lives on one backend alone, and what it will itself be named by. Pure.

Names are bytes: their kind, a blank, and what the engine knows the thing by, which is 256 bytes long at most; anything
longer names nothing here. Kinds are apart because clients choose the names of their streams, and engines all others.

Sources: OpenAI's "Responses", and "Chat completions" that are stored; vLLM 0.32.0 keeps responses in memory, with
``VLLM_ENABLE_RESPONSES_API_STORE``; llama.cpp's streams that go on without their clients: ``/v1/stream?conv_id=`` in
tools/server/README-dev.md at 181a4a8, "Resumable streaming"; ``/v1/stream/...`` at first, in pull request 23226.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import msgspec

__all__ = ["is_stream", "name_in_body", "name_in_target", "name_of_response", "name_of_stream"]

_LONGEST = 256  # bytes
_IN_PATH = re.compile(rb"(?:/v1)?/(stream|responses|chat/completions)/([^/?]++)")
_IN_QUERY = re.compile(rb"[?&]conv_id=([^&]++)")
_STREAM = b"stream "
_RESPONSE = b"responses "
_STREAM_FIELD = re.compile(rb"(?:^|\n)x-conversation-id:[ \t]*([^\r\n]*?)[ \t]*\r", re.IGNORECASE)
# Engines give responses ids that begin so; it comes before all that the model has written.
_RESPONSE_ID = re.compile(rb'"id": ?"(resp_[A-Za-z0-9_-]{1,200})"')
_SEARCHED_BYTES = 4096


class _Continued(msgspec.Struct):
    previous_response_id: str | None = None


_decoder = msgspec.json.Decoder(_Continued)


def name_in_target(target: bytes) -> bytes | None:
    """What a request's target, path and query, names; ``None``: nothing."""
    found = _IN_PATH.match(target)
    if found is not None:
        return _name(found[1] + b" ", unquote_to_bytes(found[2]))
    found = _IN_QUERY.search(target)
    return None if found is None else _name(_STREAM, unquote_to_bytes(found[1].replace(b"+", b" ")))


def name_in_body(body: bytes) -> bytes | None:
    """The response that the body of another one says it goes on from; ``None``: it begins anew."""
    try:
        previous = _decoder.decode(body).previous_response_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # an engine will say what is wrong with it
    return _name(_RESPONSE, previous.encode(errors="surrogatepass")) if previous else None


def name_of_stream(fields: bytes) -> bytes | None:
    """By what a client may ask for its stream again, as its header lines say; ``None``: not at all."""
    found = _STREAM_FIELD.search(fields)
    return _name(_STREAM, found[1]) if found is not None and found[1] else None


def name_of_response(beginning: bytes) -> bytes | None:
    """By what a response may be asked for, as its beginning says, whole or a stream; ``None``: it does not say."""
    found = _RESPONSE_ID.search(beginning[:_SEARCHED_BYTES])
    return None if found is None else _RESPONSE + found[1]


def is_stream(name: bytes) -> bool:
    """Whether it names a stream."""
    return name.startswith(_STREAM)


def _name(kind: bytes, known_by: bytes) -> bytes | None:
    return kind + known_by if len(known_by) <= _LONGEST else None
