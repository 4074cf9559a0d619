"""Clients' requests, as detailed as engine caches and proxy policies need."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

__all__ = ["BYTES_A_TOKEN", "MODEL", "Prompt", "Request", "Segment", "common_tokens", "token_count"]

BYTES_A_TOKEN = 4  # of English text
MODEL = "model"


class Segment(NamedTuple):
    """A piece of text, identified by its number: a system prompt, a document, a turn or an answer."""

    number: int
    tokens: int


Prompt = tuple[Segment, ...]


def token_count(prompt: Iterable[Segment]) -> int:
    """Length of ``prompt`` in tokens."""
    return sum(segment.tokens for segment in prompt)


def common_tokens(one: Prompt, other: Prompt) -> int:
    """Length of the common prefix in tokens."""
    common = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine.number != theirs.number:
            break
        common += min(mine.tokens, theirs.tokens)
        if mine.tokens != theirs.tokens:
            break
    return common


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        number: in the order of arrival.
        prompt: text that the engine reads.
        answer: text that the engine will generate; unknown to proxies.
        max_tokens: the request's token limit, if any.
        session: its session header; ``None`` if it has none.
        sender: its client, identified by a key or an address.
        is_streamed: the answer is streamed.
    """

    number: int
    prompt: Prompt
    answer: Segment
    max_tokens: int | None = None
    session: str | None = None
    sender: str = ""
    is_streamed: bool = True
    prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_tokens", token_count(self.prompt))

    @property
    def body_bytes(self) -> int:
        """Length of the prompt within the body."""
        return self.prompt_tokens * BYTES_A_TOKEN

    def body(self) -> bytes:
        """The JSON body, with about four bytes per token."""
        roles = ("system", *(("user", "assistant")[number % 2] for number in range(len(self.prompt))))
        messages = [
            {"role": role, "content": _text(segment)} for role, segment in zip(roles, self.prompt, strict=False)
        ]
        members = {"model": MODEL, "messages": messages, "stream": self.is_streamed}
        if self.max_tokens is not None:
            members["max_tokens"] = self.max_tokens
        return msgspec.json.encode(members)


@functools.lru_cache(maxsize=1024)
def _text(segment: Segment) -> str:
    word = f"{segment.number:015x} "  # four tokens
    return (word * (segment.tokens // 4 + 1))[: segment.tokens * BYTES_A_TOKEN]
