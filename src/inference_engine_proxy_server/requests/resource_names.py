"""Backend-local resources: the names under which requests and replies refer to them. Pure.

A name consists of bytes: the kind, a blank, and the engine's own id of at most 256 bytes; a resource with a longer id
has no name. The kind keeps streams apart from other resources, because clients choose the ids of streams and engines
choose all others.

Sources: OpenAI's "Responses", and stored "Chat completions"; vLLM 0.32.0, which keeps responses in memory with
``VLLM_ENABLE_RESPONSES_API_STORE``; llama.cpp's resumable streams: ``/v1/stream?conv_id=`` in
tools/server/README-dev.md at 181a4a8, "Resumable streaming", and ``/v1/stream/...`` at first, in pull request 23226.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote_to_bytes

from inference_engine_proxy_server.requests.content import RequestContent
from inference_engine_proxy_server.requests.headers import conversation_id

__all__ = [
    "is_stream",
    "name_in_content",
    "name_in_target",
    "name_of_completion",
    "name_of_response",
    "name_of_stream",
    "names_in_target",
    "stream_name",
]

_LONGEST_ID_BYTES = 256
_IN_PATH = re.compile(rb"(?:/v1)?/(stream|responses|chat/completions)/([^/?]++)")
_IN_QUERY = re.compile(rb"[?&]conv_id=([^&]++)")
_STREAM = b"stream "
_RESPONSE = b"responses "
# Engines write a response's id before any generated text, and all their ids have this prefix.
_RESPONSE_ID = re.compile(rb'"id": ?"(resp_[A-Za-z0-9_-]{1,200})"')
_COMPLETION = b"chat/completions "
_COMPLETION_ID = re.compile(rb'"id": ?"(chatcmpl-[A-Za-z0-9_-]{1,200})"')
_SEARCHED_BYTES = 4096


def name_in_target(target: bytes) -> bytes | None:
    """The resource that a request's path or query names; ``None`` when it names none."""
    found = _IN_PATH.match(target)
    if found is not None:
        return _name(found[1] + b" ", unquote_to_bytes(found[2]))
    found = _IN_QUERY.search(target)
    return None if found is None else _name(_STREAM, unquote_to_bytes(found[1].replace(b"+", b" ")))


def names_in_target(path: bytes, query: bytes) -> Iterator[bytes | None]:
    """All resources that an engine may find in a request's path or query; ``None`` for an id that is too long."""
    found = _IN_PATH.match(path)
    if found is not None:
        yield _name(found[1] + b" ", unquote_to_bytes(found[2]))
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1"):
        if name == "conv_id":
            yield stream_name(value.encode("latin-1"))


def name_in_content(content: RequestContent) -> bytes | None:
    """The response that a request continues; ``None`` when it starts a new conversation."""
    previous = content.previous_response_id
    return None if previous is None else _name(_RESPONSE, previous.encode(errors="surrogatepass"))


def name_of_stream(header_lines: bytes) -> bytes | None:
    """The name under which the client can resume its stream; ``None`` when its headers give none."""
    given = conversation_id(header_lines)
    return None if given is None else stream_name(given)


def stream_name(given: bytes) -> bytes | None:
    """The name of the stream that clients call ``given``; ``None`` when that is too long."""
    return _name(_STREAM, given)


def name_of_response(beginning: bytes) -> bytes | None:
    """The name of the response that a reply begins with, whole or streamed; ``None`` when it shows none.

    Args:
        beginning: the reply's first bytes; 4096 of them are searched.
    """
    found = _RESPONSE_ID.search(beginning[:_SEARCHED_BYTES])
    return None if found is None else _RESPONSE + found[1]


def name_of_completion(beginning: bytes) -> bytes | None:
    """The name of the chat completion that a reply begins with; as :func:`name_of_response`."""
    found = _COMPLETION_ID.search(beginning[:_SEARCHED_BYTES])
    return None if found is None else _COMPLETION + found[1]


def is_stream(name: bytes) -> bool:
    """Whether ``name`` names a stream."""
    return name.startswith(_STREAM)


def _name(kind: bytes, engine_id: bytes) -> bytes | None:
    return kind + engine_id if len(engine_id) <= _LONGEST_ID_BYTES else None
