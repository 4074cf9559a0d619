"""What engines read from a request: the prompt as the cost model sees it, and the length of the answer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec

from simulation.requests import BYTES_A_TOKEN, Prompt, Segment
from support.tiny_gguf import whole_words

__all__ = ["CHAT_ML", "ChatRequest", "Message", "StreamOptions", "Template", "prompt_of", "text_of", "tokens_in"]

_WORDS = [f" {word}" for word in whole_words()]
_BEGIN, _TAIL = -1, -2
_HEADS = {"system": -3, "user": -4, "assistant": -5, "tool": -6}
_OTHER_HEAD = -7


class _Part(msgspec.Struct):
    text: str = ""


class Message(msgspec.Struct):
    """A message; parts that are not text count nothing."""

    role: str
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(msgspec.Struct):
    """OpenAI's ``stream_options``."""

    include_usage: bool | None = False


class ChatRequest(msgspec.Struct):
    """The members of a chat completion that matter here.

    Attributes:
        seed: length of the answer in tokens: an emulated engine ends its answer there, as a model does at a point that
            depends on prompt and seed. ``None``: as long as ``max_tokens`` allows. Proxies forward it unread.
    """

    messages: list[Message]
    model: str = ""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def most_tokens(self) -> int | None:
        """The client's limit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def answer_tokens(self, unbounded: int) -> int:
        """Length of the answer; ``unbounded`` if the request does not say."""
        known = [tokens for tokens in (self.seed, self.most_tokens) if tokens is not None]
        return max(1, min(known, default=unbounded))


@dataclass(frozen=True, slots=True)
class Template:
    """Numbers of tokens that a chat template adds.

    Attributes:
        begin: before the first message.
        head: before the text of a message, by role; other roles as "user".
        tail: after the text of a message.
    """

    begin: int
    tail: int
    head: Mapping[str, int] = field(default_factory=dict)

    def head_of(self, role: str) -> int:
        return self.head.get(role, self.head["user"])


CHAT_ML = Template(begin=0, tail=2, head={"user": 3})  # <|im_start|>user\n ... <|im_end|>\n


def prompt_of(messages: Sequence[Message], template: Template) -> Prompt:
    """The text that an engine reads, up to the head of its answer. Equal texts are equal segments."""
    pieces = [Segment(_BEGIN, template.begin)]
    for message in messages:
        text = message.text
        pieces += (
            _head(message.role, template),
            Segment(hash(text) & (2**63 - 1), tokens_in(text)),
            Segment(_TAIL, template.tail),
        )
    pieces.append(_head("assistant", template))
    return tuple(piece for piece in pieces if piece.tokens)


def tokens_in(text: str) -> int:
    """Number of tokens: one for each four bytes."""
    return -(-len(text.encode()) // BYTES_A_TOKEN)


def text_of(segment: Segment) -> str:
    """The text of a segment: a word of four bytes for each token, which is one token of the model in ``tiny_gguf``."""
    return _words(segment.number, segment.tokens)


@functools.lru_cache(maxsize=4096)
def _words(number: int, tokens: int) -> str:
    return "".join(Random(number).choices(_WORDS, k=tokens))


def _head(role: str, template: Template) -> Segment:
    return Segment(_HEADS.get(role, _OTHER_HEAD), template.head_of(role))
