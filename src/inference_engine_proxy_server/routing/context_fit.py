"""Whether a prompt fits into a backend's context, in a fleet with contexts of different lengths.

Only the model's tokenizer can count the tokens of a prompt exactly, and the proxy has none. It assumes as many tokens
per byte as in the densest earlier prompts of the model. An overestimate merely narrows the choice; an underestimate
causes an error for the client.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from inference_engine_proxy_server.backends.base import ModelNames
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.serving import Serving
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.candidate import Candidate

__all__ = ["Need", "contexts_of", "differ_somewhere", "fitting"]

_ENOUGH_ANSWER_TOKENS = 256  # of the answer that must fit, even if the request allows a longer one


class Need(NamedTuple):
    """The context length that a request needs.

    Attributes:
        tokens: upper estimate of its prompt, plus a part of the answer.
        answer_tokens: longest answer that it allows; 0 if it sets no limit.
    """

    tokens: float
    answer_tokens: int

    @classmethod
    def of(cls, prompt: Prompt, token_sizes: TokenSizes) -> Need | None:
        """The need of ``prompt``; ``None`` when unknown, because it is not read as one text."""
        if not prompt.is_one_text:
            return None
        tokens = prompt.tokens * prompt.bytes_a_token / token_sizes.fewest(prompt.model)
        bound = prompt.answer_tokens
        enough = _ENOUGH_ANSWER_TOKENS if bound is None else min(bound, _ENOUGH_ANSWER_TOKENS)
        return cls(tokens + enough, bound or 0)


def contexts_of(backends: Iterable[Backend], model: str | None) -> list[float] | None:
    """The context of each backend for ``model``, infinite when unknown; ``None`` when all are equal."""
    reported = [backend.serving.context_of(model) for backend in backends]
    return [math.inf if tokens is None else tokens for tokens in reported] if len(set(reported)) > 1 else None


def differ_somewhere(backends: Iterable[Backend]) -> bool:
    """Whether two backends serve the same model with contexts of different lengths."""
    lengths: dict[str | None, set[int | None]] = {}
    for serving in _distinct(backend.serving for backend in backends):
        for model in serving.model_ids:
            lengths.setdefault(model, set()).add(serving.context_of(model))
        if serving.model_names is not ModelNames.STRICT:  # such a backend serves names that no backend lists
            lengths.setdefault(None, set()).add(serving.context_of(None))
    return any(len(found) > 1 for found in lengths.values())


def _distinct(servings: Iterable[Serving]) -> list[Serving]:
    """Those of ``servings`` that differ in models or contexts: large fleets have many equal ones, of many models."""
    found: dict[Hashable, list[Serving]] = {}
    for serving in servings:
        alike = found.setdefault((serving.model_ids, serving.model_names, serving.only_context), [])
        if all(one.contexts != serving.contexts for one in alike):
            alike.append(serving)
    return [serving for alike in found.values() for serving in alike]


def fitting(candidates: Sequence[Candidate], contexts: Sequence[float], need: Need) -> Sequence[Candidate]:
    """The candidates with a sufficient context; if there are none, those with the longest context.

    Args:
        candidates: returned unchanged if all have a sufficient context.
        contexts: the context of each in tokens; infinite when unknown.
        need: the request's need.
    """
    pairs = [(one, one.backend, context) for one, context in zip(candidates, contexts, strict=True)]
    fit = [
        (one, backend)
        for one, backend, context in pairs
        if context >= (max(need) if backend.serving.bounds_max_tokens else need.tokens)
    ]
    if len(fit) == len(candidates):
        return candidates
    staying = [(one, context) for one, backend, context in pairs if not backend.is_draining]
    if not staying or any(not backend.is_draining for _, backend in fit):
        return [one for one, _ in fit]
    longest = max(context for _, context in staying)
    return [one for one, context in staying if context == longest]
