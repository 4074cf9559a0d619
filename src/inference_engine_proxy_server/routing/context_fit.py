"""Where a prompt fits, in a fleet whose backends have contexts of different lengths.

A prompt's tokens are counted by its model's tokenizer alone, and here nobody has that: so they are taken to be as many
as the densest texts have that the model has been seen to read. A prompt that seems too long costs no more than a
choice; one that seems too short costs its client an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from inference_engine_proxy_server.backends.base import ModelNames
from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes

__all__ = ["Need", "SizeLearning", "contexts_of", "differ_somewhere", "fitting", "learn_size"]

_ENOUGH_ANSWER_TOKENS = 256  # what a request may ask for more than that, it may get


class Need(NamedTuple):
    """What a request needs of a context.

    Attributes:
        tokens: of its prompt, at most, and of an answer that is worth having.
        answer_tokens: the most that its answer may have; 0: it sets no bound.
    """

    tokens: float
    answer_tokens: int

    @classmethod
    def of(cls, prompt: Prompt, token_sizes: TokenSizes) -> Need | None:
        """That of ``prompt``; ``None``: there is no telling, since it is not read as one text."""
        if not prompt.is_one_text:
            return None
        tokens = prompt.tokens * prompt.bytes_a_token / token_sizes.fewest(prompt.model)
        bound = prompt.answer_tokens
        enough = _ENOUGH_ANSWER_TOKENS if bound is None else min(bound, _ENOUGH_ANSWER_TOKENS)
        return cls(tokens + enough, bound or 0)


def contexts_of(backends: Iterable[Backend], model: str | None) -> list[float] | None:
    """The context that each has for ``model``, infinite if it does not tell; ``None``: all are alike."""
    told = [backend.context_of(model) for backend in backends]
    return [math.inf if tokens is None else tokens for tokens in told] if len(set(told)) > 1 else None


def differ_somewhere(backends: Iterable[Backend]) -> bool:
    """Whether backends that serve the same model have contexts of different lengths for it."""
    told: dict[str | None, set[int | None]] = {}
    for backend in backends:
        for model in backend.model_ids:
            told.setdefault(model, set()).add(backend.context_of(model))
        if backend.model_names is not ModelNames.STRICT:  # and so it serves names that nobody lists
            told.setdefault(None, set()).add(backend.context_of(None))
    return any(len(lengths) > 1 for lengths in told.values())


def fitting(backends: Sequence[Backend], contexts: Sequence[float], need: Need) -> Sequence[Backend]:
    """Those where it fits: ``backends`` itself, if it fits everywhere; if nowhere, those with the longest context.

    Args:
        contexts: of each, in tokens; infinite: it does not tell.
        need: what it needs.
    """
    pairs = list(zip(backends, contexts, strict=True))
    fit = [one for one, context in pairs if context >= (max(need) if one.bounds_max_tokens else need.tokens)]
    if len(fit) == len(backends):
        return backends
    there = [(one, context) for one, context in pairs if not one.is_draining]
    if not there or any(not one.is_draining for one in fit):
        return fit
    longest = max(context for _, context in there)
    return [one for one, context in there if context == longest]


def learn_size(token_sizes: TokenSizes, prompt: Prompt, facts: ReplyFacts) -> None:
    """``prompt`` has been answered, and the reply ended with these facts."""
    if facts.prompt_tokens is not None and prompt.is_plain:
        token_sizes.learn(prompt.model, prompt.size, facts.prompt_tokens)


class SizeLearning:
    """Learns from a request nothing but how many tokens its prompt had."""

    __slots__ = ("_prompt", "_token_sizes")

    def __init__(self, token_sizes: TokenSizes, prompt: Prompt) -> None:
        self._token_sizes = token_sizes
        self._prompt = prompt

    def begin(self) -> None:
        """The first data of its answer is there, which tells nothing."""

    def wants_facts(self) -> bool:
        """Whether what its reply says is worth reading."""
        return True

    def complete(self, facts: ReplyFacts | None) -> None:
        """Its answer is complete, and ended with these facts; ``None``: nobody has read them."""
        if facts is not None:
            learn_size(self._token_sizes, self._prompt, facts)

    def close(self) -> None:
        """Nothing more comes of it."""
