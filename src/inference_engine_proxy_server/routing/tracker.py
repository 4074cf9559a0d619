"""What routing learns from one request."""

from __future__ import annotations

from typing import Protocol

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes

__all__ = ["SizeTracker", "Tracker", "learn_size"]


class Tracker(Protocol):
    """Follows one request on one backend, and learns from it."""

    def begin(self) -> None:
        """The first data of the answer arrived."""

    def wants_facts(self) -> bool:
        """Whether the facts in the reply are worth parsing."""

    def complete(self, facts: ReplyFacts | None) -> None:
        """The answer is complete, and reported ``facts``; ``None`` if they were not parsed."""

    def close(self) -> None:
        """The request is over, complete or not."""


class SizeTracker:
    """Learns only how many tokens the prompt had."""

    __slots__ = ("_prompt", "_token_sizes")

    def __init__(self, token_sizes: TokenSizes, prompt: Prompt) -> None:
        self._token_sizes = token_sizes
        self._prompt = prompt

    def begin(self) -> None:
        """The first data of the answer arrived, which says nothing about the prompt's size."""

    def wants_facts(self) -> bool:
        """Always true."""
        return True

    def complete(self, facts: ReplyFacts | None) -> None:
        """The answer is complete, and reported ``facts``; ``None`` if they were not parsed."""
        if facts is not None:
            learn_size(self._token_sizes, self._prompt, facts)

    def close(self) -> None:
        """The request is over; nothing to release."""


def learn_size(token_sizes: TokenSizes, prompt: Prompt, facts: ReplyFacts) -> None:
    """Learn from the ``facts`` in the reply to ``prompt``."""
    if facts.prompt_tokens is not None and prompt.is_plain:
        token_sizes.learn(prompt.model, prompt.size, facts.prompt_tokens)
