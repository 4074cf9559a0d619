"""Decodes JSON request bodies: every decoder that reads a client's JSON is in this module.

A body is decoded once into a view whose members stay raw bytes until they are read, so that an invalid member hides no
other one. There are two depths: :func:`read_members` skips the prompt, :func:`read_prompt_members` keeps its parts.
Nested values become Python objects only where a caller asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

__all__ = [
    "NOT_AN_OBJECT",
    "Members",
    "PromptMembers",
    "all_members",
    "read_list",
    "read_members",
    "read_prompt_members",
    "read_text",
    "role_of",
]

_Scalar = str | int | float | bool | None
_ABSENT = msgspec.Raw()
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_JSON_BLANKS = b" \t\r\n"


class Members(msgspec.Struct, gc=False):
    """What the proxy reads of a request besides its prompt.

    Attributes:
        model: as sent; a string in every valid request.
    """

    model: _Scalar = None
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


class PromptMembers(Members, gc=False):
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


_members_decoder = msgspec.json.Decoder(Members)
_prompt_members_decoder = msgspec.json.Decoder(PromptMembers)
_mapping_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_message_decoder = msgspec.json.Decoder(_Message)
_scalar_decoder = msgspec.json.Decoder(_Scalar)
_text_decoder = msgspec.json.Decoder(str)

NOT_AN_OBJECT = Members()
"""The members of a body that is not a JSON object, or is malformed: none. The engine reports the error."""


def read_members(body: bytes) -> Members:
    """The members of ``body`` without its prompt; :data:`NOT_AN_OBJECT` when it has none."""
    try:
        return _members_decoder.decode(body)
    except _MALFORMED:
        return NOT_AN_OBJECT


def read_prompt_members(body: bytes) -> PromptMembers | None:
    """The members of ``body`` with the parts of its prompt; ``None`` when it is not a JSON object."""
    try:
        return _prompt_members_decoder.decode(body)
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


def role_of(message: msgspec.Raw) -> str | None:
    """The ``role`` of a chat message.

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
