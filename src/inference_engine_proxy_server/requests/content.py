"""Reads what a request says besides its headers; every decoder of clients' JSON is in this module.

A body is decoded once into a view whose members stay raw bytes until they are read, so that an invalid member hides no
other one. There are two depths: :func:`read_content` skips the prompt, :func:`read_prompt_content` keeps its parts.
Nested values become Python objects only where a caller asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

import msgspec

__all__ = [
    "PromptContent",
    "RequestContent",
    "all_members",
    "read_content",
    "read_list",
    "read_prompt_content",
    "read_text",
    "read_texts",
    "role_of",
]

_Scalar = str | int | float | bool | None
_ABSENT = msgspec.Raw()
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_JSON_BLANKS = b" \t\r\n"

_MULTIPART_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n')
_MULTIPART_SEARCH_BYTES = 1 << 20  # the fields of a form come before or after its file, and audio files are longer


class RequestContent(msgspec.Struct, frozen=True, gc=False):
    """What the proxy reads of a request's target and body, without its prompt.

    Attributes:
        model: the model that the request names; ``None`` when it names none.
    """

    model: str | None = None
    raw_stream: msgspec.Raw = msgspec.field(default=_ABSENT, name="stream")
    raw_max_tokens: msgspec.Raw = msgspec.field(default=_ABSENT, name="max_tokens")
    raw_max_completion_tokens: msgspec.Raw = msgspec.field(default=_ABSENT, name="max_completion_tokens")
    raw_max_output_tokens: msgspec.Raw = msgspec.field(default=_ABSENT, name="max_output_tokens")
    raw_n_predict: msgspec.Raw = msgspec.field(default=_ABSENT, name="n_predict")
    raw_previous_response_id: msgspec.Raw = msgspec.field(default=_ABSENT, name="previous_response_id")

    @property
    def is_streamed(self) -> bool:
        """Whether the request asks for a stream."""
        return _scalar(self.raw_stream) is True

    @property
    def answer_tokens(self) -> int | None:
        """The most tokens that the answer may have; ``None`` when the request sets no valid limit."""
        for raw in (
            self.raw_max_completion_tokens,
            self.raw_max_output_tokens,
            self.raw_max_tokens,
            self.raw_n_predict,
        ):
            limit = _scalar(raw)
            if type(limit) is int and limit >= 0:
                return limit
        return None

    @property
    def previous_response_id(self) -> str | None:
        """The response that this request continues; ``None`` when it starts a new conversation."""
        given = _scalar(self.raw_previous_response_id)
        return given if isinstance(given, str) and given else None


class PromptContent(RequestContent, frozen=True, gc=False):
    """The same, and the raw parts of the prompt; a part that the body lacks is empty."""

    messages: list[msgspec.Raw] | None = None
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    cache_salt: _Scalar = None
    prompt_cache_key: _Scalar = None


class _Message(msgspec.Struct, gc=False):
    role: _Scalar = None


_decode = msgspec.json.Decoder(RequestContent).decode
_prompt_decoder = msgspec.json.Decoder(PromptContent)
_mapping_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_message_decoder = msgspec.json.Decoder(_Message)
_scalar_decoder = msgspec.json.Decoder(_Scalar)
_text_decoder = msgspec.json.Decoder(str)
_texts_decoder = msgspec.json.Decoder(str | list[str])

_EMPTY = RequestContent()


def read_content(target: bytes, body: bytes) -> RequestContent:
    """The content of a request, without its prompt.

    The model is the ``model`` member of a JSON object, the ``model`` part of a form (audio transcription), or the
    ``model`` parameter of the query (llama.cpp's router mode: ``GET /props?model=...``). Routing may guess it from a
    loose reading, because the engine checks it again; :mod:`.unambiguous_model` is for permissions. Malformed JSON has
    no content: the engine reports the error.

    Args:
        target: path and query as sent.
        body: the whole body.
    """
    if body:
        try:
            return _decode(body)
        except _MALFORMED:
            if body[:64].lstrip()[:1] == b"{":
                return _EMPTY
    model = _model_in_form(body) if body.startswith(b"--") else _model_in_query(target)
    return _EMPTY if model is None else RequestContent(model)


def _model_in_form(body: bytes) -> str | None:
    part = _MULTIPART_MODEL.search(body[:_MULTIPART_SEARCH_BYTES]) or _MULTIPART_MODEL.search(
        body[-_MULTIPART_SEARCH_BYTES:]
    )
    return part[1].decode(errors="replace") if part else None


def _model_in_query(target: bytes) -> str | None:
    query = target.partition(b"?")[2]
    return parse_qs(query.decode()).get("model", [None])[0] if b"model=" in query else None


def read_prompt_content(body: bytes) -> PromptContent | None:
    """The content of a JSON body with the parts of its prompt; ``None`` when it is not an object, or malformed."""
    try:
        return _prompt_decoder.decode(body)
    except _MALFORMED:
        return None


def all_members(body: bytes) -> Mapping[str, msgspec.Raw] | None:
    """Every member by name, the last of equal names; ``None`` when ``body`` is not an object. Values are unchecked."""
    try:
        return _mapping_decoder.decode(body.strip(_JSON_BLANKS))
    except _MALFORMED:
        return None


def read_list(raw: msgspec.Raw) -> Sequence[msgspec.Raw]:
    """The raw items of ``raw``, a JSON array that a decoder has already accepted."""
    return _list_decoder.decode(raw)


def read_text(raw: msgspec.Raw) -> str | None:
    """The string in ``raw``; ``None`` when it is not a string."""
    try:
        return _text_decoder.decode(raw)
    except _MALFORMED:
        return None


def read_texts(raw: msgspec.Raw) -> Sequence[str]:
    """The strings in ``raw``, a string or a list of strings; empty when it is something else."""
    try:
        found = _texts_decoder.decode(raw)
    except _MALFORMED:
        return ()
    return [found] if isinstance(found, str) else found


def role_of(message: msgspec.Raw) -> str | None:
    """The ``role`` of a chat message; ``None`` when it is missing or not a string.

    Raises:
        ValueError: the message is not an object, or its role is not a scalar.
    """
    try:
        role = _message_decoder.decode(message).role
    except _MALFORMED as error:
        raise ValueError("not a chat message") from error
    return role if isinstance(role, str) else None


def _scalar(raw: msgspec.Raw) -> _Scalar:
    try:
        return _scalar_decoder.decode(raw) if raw else None
    except _MALFORMED:
        return None
