"""Reads what a reply says of itself, apart from counts: its id, its model, and why it ended."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

import msgspec

__all__ = ["ReplyNames", "read_names"]

_DATA = re.compile(rb"(?:^|\n)data: ?(\{[^\r\n]*)")
# In generated text, a name would have a backslash before its closing quote.
_REASON = re.compile(rb'"(?:finish_reason|stop_reason|done_reason)"\s*+:\s*+"([A-Za-z_]{1,32})"')
_MOST_REASONS = 8

_Name = Annotated[str, msgspec.Meta(max_length=256)]


class ReplyNames(NamedTuple):
    """What a reply says of itself; ``None`` means that it does not, or that the place was not kept.

    Attributes:
        id: of the completion, message or response.
        model: the engine's name of the model that answered.
        finish_reasons: why its choices ended, in order, without repetitions.
    """

    id: str | None = None
    model: str | None = None
    finish_reasons: tuple[str, ...] = ()


class _Named(msgspec.Struct):
    id: _Name | None = None
    model: _Name | None = None


class _Reply(_Named):
    message: _Named | None = None  # Anthropic's first event
    response: _Named | None = None  # of OpenAI's responses: each event that has a whole one


_decoder = msgspec.json.Decoder(_Reply)


def read_names(reply: bytes) -> ReplyNames:
    """What ``reply`` says of itself.

    Args:
        reply: the body without the framing of chunks, or its beginning and its end.
    """
    events = _DATA.findall(reply)
    first, last = (_read(events[0]), _read(events[-1])) if events else (_read(reply), _Named())
    reasons = dict.fromkeys(_REASON.findall(reply))
    return ReplyNames(
        first.id or last.id,
        first.model or last.model,  # llama.cpp names it only in the last event of a response
        tuple(reason.decode() for reason in reasons)[:_MOST_REASONS],
    )


def _read(text: bytes) -> _Named:
    try:
        found = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Named()  # of a long reply, the middle was not kept
    inner = found.message or found.response
    return found if inner is None else inner
