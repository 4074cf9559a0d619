"""Estimates bytes per token: a constant at first, then per model from the token counts in replies. Pure.

The estimate is the median over a model's latest prompts, where the initial constant counts as one prompt. Two prompts
therefore suffice to leave a wrong constant, and one outlier (a picture that the text only links to) changes nothing.
"""

from __future__ import annotations

from collections import deque
from statistics import median

__all__ = ["USUAL_BYTES_A_TOKEN", "TokenSizes"]

USUAL_BYTES_A_TOKEN = 4.0
"""For English text; code and other languages have fewer."""

_FEWEST_BYTES_A_TOKEN = 3.0
"""For dense text: code, or Chinese in UTF-8."""

_MODELS = 1024  # most recently learned models that are kept
_LATEST = 31  # prompts per model
_ENOUGH = 8  # readings after which the initial constant no longer bounds the dense estimate
_RARE = 10  # the densest of this many prompts may be an outlier
_DENSER = 0.9  # a new prompt may have this fraction of the bytes per token that were seen so far
_SHORTEST = 256  # tokens; in shorter prompts the chat template distorts the ratio


class _Latest:
    __slots__ = ("fewest", "median", "seen")

    def __init__(self) -> None:
        self.seen = deque([USUAL_BYTES_A_TOKEN], maxlen=_LATEST)
        self.median = USUAL_BYTES_A_TOKEN
        self.fewest = _FEWEST_BYTES_A_TOKEN


class TokenSizes:
    """Bytes per token, by model; ``None`` is the model of requests that name none."""

    def __init__(self) -> None:
        self._models: dict[str | None, _Latest] = {}  # least recently learned first

    def of(self, model: str | None) -> float:
        """The usual bytes per token of ``model``."""
        latest = self._models.get(model)
        return USUAL_BYTES_A_TOKEN if latest is None else latest.median

    def fewest(self, model: str | None) -> float:
        """Bytes per token of ``model`` in dense text: few prompts have more tokens than this predicts."""
        latest = self._models.get(model)
        return _FEWEST_BYTES_A_TOKEN if latest is None else latest.fewest

    def learn(self, model: str | None, size: int, tokens: int) -> None:
        """Add a reading: ``model`` counted ``tokens`` in a prompt of ``size`` bytes."""
        if tokens < _SHORTEST or size <= 0:
            return
        models = self._models
        latest = models.pop(model, None) or _Latest()
        models[model] = latest
        if len(models) > _MODELS:
            del models[next(iter(models))]
        latest.seen.append(size / tokens)
        latest.median = median(latest.seen)
        dense = _DENSER * sorted(latest.seen)[len(latest.seen) // _RARE]
        latest.fewest = dense if len(latest.seen) > _ENOUGH else min(dense, _FEWEST_BYTES_A_TOKEN)
