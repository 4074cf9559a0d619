"""Chat completions as clients receive them, as strict as an SDK: anything but a complete answer is a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

__all__ = ["Answer", "AnswerReader", "Failed", "Message", "answer_in"]

Message = dict[str, str]


class Failed(Exception):
    """No answer or an incomplete one; the text is the status or a description."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    Attributes:
        first_at: when the first token arrived, by the monotonic clock.
        cached_tokens: prompt tokens that the engine reports as cached.
    """

    text: str
    first_at: float
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text = msgspec.field(default_factory=_Text)
    message: _Text = msgspec.field(default_factory=_Text)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Part(msgspec.Struct):
    """An event of a stream, or a whole answer."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Part).decode


class AnswerReader:
    """Reads the lines of a stream.

    Attributes:
        is_complete: its last line has been read.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._pieces: list[str] = []
        self._first_at: float | None = None
        self._usage: _Usage | None = None

    def read(self, line: bytes, now: float) -> None:
        """Read a line that arrived ``now``.

        Raises:
            Failed: it reports an error.
            ValueError: it is no event of a chat completion.
        """
        if not line.startswith(b"data: ") or self.is_complete:
            return
        if line.startswith(b"data: [DONE]"):
            self.is_complete = True
            return
        part = _decode(line[6:])
        if part.error is not None:
            raise Failed("error event")
        piece = "".join(choice.delta.content or "" for choice in part.choices)
        if piece:
            if self._first_at is None:
                self._first_at = now
            self._pieces.append(piece)
        self._usage = part.usage or self._usage

    def answer(self) -> Answer:
        """The answer. Raises Failed unless it is complete."""
        if not self.is_complete:
            raise Failed("broken off")
        if self._first_at is None or self._usage is None:
            raise Failed("without text or usage")
        return _answer("".join(self._pieces), self._first_at, self._usage)


def answer_in(document: bytes, now: float) -> Answer:
    """The answer in a reply without streaming, which arrived ``now``.

    Raises:
        Failed: it has no answer.
        ValueError: it is no chat completion.
    """
    part = _decode(document)
    text = "".join(choice.message.content or "" for choice in part.choices)
    if not text or part.usage is None:
        raise Failed("without text or usage")
    return _answer(text, now, part.usage)


def _answer(text: str, first_at: float, usage: _Usage) -> Answer:
    details = usage.prompt_tokens_details
    cached = 0 if details is None else details.cached_tokens or 0
    return Answer(text, first_at, usage.prompt_tokens, cached, usage.completion_tokens)
