"""How many bytes of a text are a token: a guess at first, then for each model what its replies tell. Pure.

The strategy: the median of a model's latest prompts, among which the guess counts as one. So two prompts are enough to
leave a wrong guess, and an odd one (a picture that is only named in the text) changes nothing.
"""

from __future__ import annotations

from collections import deque
from statistics import median

__all__ = ["USUAL_BYTES_A_TOKEN", "TokenSizes"]

USUAL_BYTES_A_TOKEN = 4.0
"""Of English text; code and other languages have fewer."""

_FEWEST_BYTES_A_TOKEN = 3.0
"""Of dense text: code, or Chinese in UTF-8."""

_MODELS = 1024  # those whose replies told something last
_LATEST = 31
_ENOUGH = 8  # prompts that have been seen, before one of a kind that has not may be forgotten
_RARE = 10  # of so many prompts the densest one may be a chance
_DENSER = 0.9  # times as many bytes as any that has been seen a prompt may have
_SHORTEST = 256  # tokens of a prompt that says something of its text: of shorter ones the template has its share


class _Latest:
    __slots__ = ("fewest", "median", "seen")

    def __init__(self) -> None:
        self.seen = deque([USUAL_BYTES_A_TOKEN], maxlen=_LATEST)
        self.median = USUAL_BYTES_A_TOKEN
        self.fewest = _FEWEST_BYTES_A_TOKEN


class TokenSizes:
    """Bytes a token, by model."""

    def __init__(self) -> None:
        self._models: dict[str | None, _Latest] = {}  # from the longest untold to the latest

    def of(self, model: str | None) -> float:
        """Bytes that a token of ``model`` usually has; ``None`` is as good a name, of requests that give none."""
        latest = self._models.get(model)
        return USUAL_BYTES_A_TOKEN if latest is None else latest.median

    def fewest(self, model: str | None) -> float:
        """Bytes that a token of ``model`` has where the text is dense: hardly a prompt has more tokens than by that."""
        latest = self._models.get(model)
        return _FEWEST_BYTES_A_TOKEN if latest is None else latest.fewest

    def learn(self, model: str | None, size: int, tokens: int) -> None:
        """``model`` has read a text of so many bytes as so many tokens."""
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
