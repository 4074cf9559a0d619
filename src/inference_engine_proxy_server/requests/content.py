"""Reads the content of a request apart from its headers; clients' JSON is decoded here and in ``tolerant_json`` only.

A body is decoded once into a view whose members stay raw bytes until they are read, so that one invalid member does not
hide the others. There are two depths: :func:`read_content` skips the prompt, :func:`read_content_with_prompt` keeps its
parts. Nested values become Python objects only when a caller needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

import msgspec

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.forms import URLENCODED, form_values, is_form, media_type
from inference_engine_proxy_server.requests.headers import content_coding
from inference_engine_proxy_server.requests.tolerant_json import as_utf8, member_text, tolerant_members

__all__ = [
    "NO_MESSAGES",
    "PromptContent",
    "RequestContent",
    "all_members",
    "is_answer",
    "model_problem",
    "names_no_model",
    "read_content",
    "read_content_with_prompt",
    "read_list",
    "read_messages",
    "read_text",
    "read_text_in",
    "read_texts",
    "role_of",
]

_Scalar = str | int | float | bool | None
_ABSENT = msgspec.Raw()
NO_MESSAGES = _ABSENT
"""In place of the messages of a request that has none; false, like every empty value."""
_TRUE = msgspec.Raw(b"true")
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_JSON_BLANKS = b" \t\r\n"
_NO_CODING = (b"", b"identity")
_NO_MODEL = (None, b"null", b'""')


class RequestContent(msgspec.Struct, frozen=True, gc=False):
    """The content of a request's target and body that the proxy reads, without the prompt.

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
        return self.raw_stream == _TRUE

    @property
    def answer_tokens(self) -> int | None:
        """The most tokens that the answer may have; ``None`` when the request sets no valid limit."""
        for raw in (
            self.raw_max_completion_tokens,
            self.raw_max_output_tokens,
            self.raw_max_tokens,
            self.raw_n_predict,
        ):
            if raw:
                limit = _scalar(raw)
                if type(limit) is int and limit >= 0:
                    return limit
        return None

    @property
    def previous_response_id(self) -> str | None:
        """The response that this request continues; ``None`` when it starts a new conversation."""
        given = _scalar(self.raw_previous_response_id)
        return given if isinstance(given, str) and given else None

    @property
    def raw_messages(self) -> msgspec.Raw:
        """The ``messages``, unread; empty when there are none, or if the parts of the prompt were read instead."""
        return _ABSENT

    @property
    def raw_input(self) -> msgspec.Raw:
        """The ``input``, likewise."""
        return _ABSENT


class _WithConversation(RequestContent, frozen=True, gc=False):
    """The content, and the conversation as one raw value."""

    raw_messages: msgspec.Raw = msgspec.field(default=_ABSENT, name="messages")
    raw_input: msgspec.Raw = msgspec.field(default=_ABSENT, name="input")


class PromptContent(RequestContent, frozen=True, gc=False):
    """The content, and the raw parts of the prompt; a part that the body lacks is empty."""

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
    type: _Scalar = None


_decode = msgspec.json.Decoder(_WithConversation).decode
_decode_with_prompt = msgspec.json.Decoder(PromptContent).decode
_mapping_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_message_decoder = msgspec.json.Decoder(_Message)
_scalar_decoder = msgspec.json.Decoder(_Scalar)
_text_decoder = msgspec.json.Decoder(str)
_texts_decoder = msgspec.json.Decoder(str | list[str])

_EMPTY = RequestContent()


def read_content(target: bytes, body: bytes, header_lines: bytes = b"") -> RequestContent:
    """The content of a request, without its prompt.

    The model is the ``model`` member of a JSON object, the ``model`` field of a form (audio transcription), or the
    ``model`` parameter of the query (llama.cpp's router mode: ``GET /props?model=...``). It is found even in JSON that
    only some engines accept; the other engines report an error themselves.

    Args:
        target: path and query as sent.
        body: the whole body.
        header_lines: the request's header lines, each ending in CRLF.
    """
    content: RequestContent
    if body:
        try:
            content = _decode(body)
        except _MALFORMED:
            content = _tolerant_content(body)
        if content.model:
            return content
    else:
        content = _EMPTY
    return _with_model_from_elsewhere(content, target, header_lines, body)


def model_problem(header_lines: bytes, body: bytes) -> ClientError | None:
    """Why the model in ``body`` cannot be read; ``None`` when the body names none.

    Args:
        header_lines, body: of a request in which :func:`read_content` found no model.
    """
    coding = content_coding(header_lines)
    if coding not in _NO_CODING:
        return _unreadable("the body is encoded (Content-Encoding). Send it without an encoding.", status=415)
    if is_form(header_lines):
        values = form_values(header_lines, body, "model")
        if values is None:
            return _unreadable("the form cannot be read. Check its boundary.")
        return _unreadable("the form names several.") if len(set(values)) > 1 else None
    kind = media_type(header_lines)
    if kind == URLENCODED:
        return None
    members = tolerant_members(as_utf8(body))
    if members is not None:
        raw = _member(members, "model")
        return None if raw in _NO_MODEL else _unreadable("'model' must be a string.")
    if kind and not kind.endswith(("/json", "+json")):
        return _unreadable(f"a body of the type '{kind[:100]}' cannot be read. Send JSON or a form.", status=415)
    return _unreadable("the body is not a JSON object.")


def names_no_model(header_lines: bytes, body: bytes) -> bool:
    """Whether ``body`` is a JSON object to which a model can be added. Arguments as of :func:`model_problem`."""
    if content_coding(header_lines) not in _NO_CODING:
        return False
    members = tolerant_members(as_utf8(body))
    return members is not None and _member(members, "model") in _NO_MODEL


def _unreadable(reason: str, status: int = 400) -> ClientError:
    message = f"The backends serve different models, and the model of this request cannot be read: {reason}"
    return ClientError(message, status=status, code="unreadable_model")


def _tolerant_content(body: bytes) -> RequestContent:
    members = tolerant_members(as_utf8(body))
    if not members:
        return _EMPTY
    raws = {
        f"raw_{name}": msgspec.Raw(members[name])
        for name in ("stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
        if name in members
    }
    if "previous_response_id" in members:
        raws["raw_previous_response_id"] = msgspec.Raw(members["previous_response_id"])
    return RequestContent(member_text(members.get("model")), **raws)


def _with_model_from_elsewhere(
    content: RequestContent, target: bytes, header_lines: bytes, body: bytes
) -> RequestContent:
    model = _model_elsewhere(header_lines, body) if body else None
    if not model and b"?" in target:
        model = _model_in_query(target)
    if not model and content.model is None:
        return content
    return msgspec.structs.replace(content, model=model or None)


def _model_elsewhere(header_lines: bytes, body: bytes) -> str | None:
    if is_form(header_lines):
        values = form_values(header_lines, body, "model")
        return values[0] if values and len(set(values)) == 1 else None
    if media_type(header_lines) == URLENCODED:
        return parse_qs(body.decode(errors="replace"), max_num_fields=None).get("model", [None])[-1]
    members = tolerant_members(as_utf8(body))
    return None if members is None else member_text(_member(members, "model"))


def _member(members: Mapping[str, bytes], name: str) -> bytes | None:
    """The member of this name, or else of the name in another case: Go's JSON library (Ollama) ignores case."""
    found = members.get(name)
    return found if found is not None else next((raw for other, raw in members.items() if other.lower() == name), None)


def _model_in_query(target: bytes) -> str | None:
    return parse_qs(target.partition(b"?")[2].decode()).get("model", [None])[0]


def read_content_with_prompt(target: bytes, body: bytes, header_lines: bytes = b"") -> RequestContent:
    """The content of a request with the parts of its prompt, as a :class:`PromptContent`.

    Without these parts, as from :func:`read_content`, when the body is not a JSON object, or malformed. Arguments as
    there.
    """
    if body:
        try:
            content = _decode_with_prompt(body)
        except _MALFORMED:
            pass
        else:
            return content if content.model else _with_model_from_elsewhere(content, target, header_lines, body)
    return read_content(target, body, header_lines)


def all_members(body: bytes) -> Mapping[str, msgspec.Raw] | None:
    """Every member by name (of equal names, the last), unchecked; ``None`` if ``body`` is not an object."""
    try:
        return _mapping_decoder.decode(body.strip(_JSON_BLANKS))
    except _MALFORMED:
        return None


def read_list(raw: msgspec.Raw) -> Sequence[msgspec.Raw]:
    """The raw items of ``raw``, a JSON array that a decoder has already accepted."""
    return _list_decoder.decode(raw)


def read_messages(raw: msgspec.Raw) -> Sequence[msgspec.Raw]:
    """The raw items of ``raw``, JSON that a decoder has already accepted; empty when it is not an array."""
    try:
        return _list_decoder.decode(raw)
    except _MALFORMED:
        return ()


def read_text(raw: msgspec.Raw) -> str | None:
    """The string in ``raw``; ``None`` when it is not a string."""
    try:
        return _text_decoder.decode(raw)
    except _MALFORMED:
        return None


def read_text_in(value: bytes | None) -> str | None:
    """The string in ``value``, which is JSON; ``None`` when it is something else."""
    return None if value is None else read_text(msgspec.Raw(value))


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


def is_answer(message: msgspec.Raw) -> bool:
    """Whether a chat message, or an item of a response's input, was written by a model.

    Items without a role are a model's reasoning and tool calls, and the outputs of its tools, whose types end with
    ``_output`` (OpenAI's "Responses").
    """
    try:
        found = _message_decoder.decode(message)
    except _MALFORMED:
        return False
    if found.role is not None:
        return found.role == "assistant"
    return isinstance(found.type, str) and not found.type.endswith("_output")


def _scalar(raw: msgspec.Raw) -> _Scalar:
    try:
        return _scalar_decoder.decode(raw) if raw else None
    except _MALFORMED:
        return None
