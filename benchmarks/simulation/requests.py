"""What clients send, in as much detail as engines' caches and proxies' policies can tell apart."""

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
    """A piece of text that is the same wherever its number comes up: a system prompt, a document, a turn, an answer."""

    number: int
    tokens: int


Prompt = tuple[Segment, ...]


def token_count(prompt: Iterable[Segment]) -> int:
    """Its length in tokens."""
    return sum(segment.tokens for segment in prompt)


def common_tokens(one: Prompt, other: Prompt) -> int:
    """How many tokens both begin with."""
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
        number: its own, in the order of arrival.
        prompt: what the engine reads.
        answer: what it will say; no proxy knows that before.
        max_tokens: the bound that it states, if any.
        session: what its session header says; ``None``: it has none.
        sender: whose it is, by a key or an address.
        is_streamed: its answer comes token by token.
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
        """The length of its body, as far as its prompt makes it up."""
        return self.prompt_tokens * BYTES_A_TOKEN

    def body(self) -> bytes:
        """Its body as it comes over the wire, of about four bytes a token."""
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
