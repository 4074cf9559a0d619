"""What differs between kinds of engines: their pages, and the form of their answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from emulation.http_server import Exchange, Fields, Habits
from emulation.messages import ChatRequest, Message, Template, tokens_in
from simulation.batching import BatchingEngine, Usage

__all__ = ["Counts", "EngineApi", "Identity", "Outcome", "TokenizeRequest", "event", "token_numbers"]


@dataclass(slots=True)
class Counts:
    """An engine's counters since its start.

    Attributes:
        read, cached: prompt tokens that it has read, and that it had cached.
        written: tokens of answers.
        read_seconds, written_seconds: time from a request's begin to its first token, and from there to its last one.
        answers: complete answers.
        longest: tokens of the longest prompt with its answer.
    """

    read: int = 0
    cached: int = 0
    written: int = 0
    read_seconds: float = 0.0
    written_seconds: float = 0.0
    answers: int = 0
    longest: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Members that all events of an answer have in common."""

    name: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A complete answer; ``reason``: "stop" or "length"."""

    usage: Usage
    written_seconds: float
    reason: str
    includes_usage: bool


class TokenizeRequest(msgspec.Struct):
    """Body of ``POST /tokenize``: llama.cpp takes ``content``, vLLM a ``prompt`` or ``messages``."""

    content: str = ""
    prompt: str = ""
    messages: list[Message] | None = None
    with_pieces: bool = False


class EngineApi(ABC):
    """The HTTP interface of one kind of engine; texts are plain words, which JSON needs not escape.

    Attributes:
        begins_at_once: a stream's head is sent when the request arrives, rather than when it leaves the queue.
        template: the model's chat template.
        most_context: the most tokens of a prompt.
    """

    habits: ClassVar[Habits]
    begins_at_once: ClassVar[bool]

    def __init__(self, model_name: str, template: Template, most_context: int) -> None:
        self.model_name = model_name
        self.template = template
        self.most_context = most_context

    @abstractmethod
    def page(self, exchange: Exchange, engine: BatchingEngine, counts: Counts) -> None:
        """Answer any request except a chat completion."""

    @abstractmethod
    def json(self, exchange: Exchange, body: bytes, status: int = 200) -> None:
        """Send a JSON document."""

    @abstractmethod
    def stream_fields(self) -> Fields:
        """The head of a stream."""

    @abstractmethod
    def serves(self, request: ChatRequest) -> bool:
        """Whether it accepts the request's model."""

    @abstractmethod
    def refuse_body(self, exchange: Exchange, problem: str) -> None:
        """Refuse a body that is not a chat completion."""

    @abstractmethod
    def refuse_model(self, exchange: Exchange, name: str) -> None:
        """Refuse a model that it does not serve."""

    @abstractmethod
    def refuse_length(self, exchange: Exchange, tokens: int) -> None:
        """Refuse a prompt of this length."""

    @abstractmethod
    def first(self, identity: Identity, text: str) -> Iterator[bytes]:
        """The chunks with the first token."""

    @abstractmethod
    def piece(self, identity: Identity, text: str) -> bytes:
        """A chunk with further text."""

    @abstractmethod
    def last(self, identity: Identity, text: str, outcome: Outcome) -> Iterator[bytes]:
        """The chunks that end a stream, with the rest of the text."""

    @abstractmethod
    def whole(self, identity: Identity, text: str, outcome: Outcome) -> bytes:
        """The answer in one document."""


def event(payload: bytes) -> bytes:
    """``payload`` as a server-sent event."""
    return b"data: %b\n\n" % payload


def token_numbers(text: str) -> list[int]:
    """A number for each token of ``text``, equal for equal tokens."""
    return [int.from_bytes(text.encode()[4 * number : 4 * number + 4]) % 32_000 for number in range(tokens_in(text))]
