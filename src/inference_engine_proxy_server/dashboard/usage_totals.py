"""The requests and tokens of each model and key since the start of the process."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from inference_engine_proxy_server.dashboard.tally import Tally

__all__ = ["TokenTotals", "UsageTotals"]

_MOST_NAMES = 1000  # of models, or of keys; clients may make up names of models
_OTHERS = "(others)"


class TokenTotals(msgspec.Struct, gc=False):
    """Sums over requests; tokens as far as replies report them."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def add(self, more: TokenTotals) -> None:
        """Add the requests of ``more``."""
        self.requests += more.requests
        self.input_tokens += more.input_tokens
        self.cached_tokens += more.cached_tokens
        self.output_tokens += more.output_tokens


class UsageTotals(msgspec.Struct, gc=False):
    """The totals by the name of each model, and of each key; an empty name stands for none."""

    by_model: dict[str, TokenTotals] = {}
    by_key: dict[str, TokenTotals] = {}

    def add(self, model: str | None, key: str | None, tally: Tally) -> None:
        """Add requests for ``model`` with ``key`` that a backend answered."""
        more = TokenTotals(tally.requests, tally.input_tokens, tally.cached_tokens, tally.output_tokens)
        _totals_of(self.by_model, model or "").add(more)
        _totals_of(self.by_key, key or "").add(more)

    @classmethod
    def merged(cls, parts: Iterable[UsageTotals]) -> UsageTotals:
        """The totals of several workers together."""
        merged = cls()
        for part in parts:
            for totals, more in ((merged.by_model, part.by_model), (merged.by_key, part.by_key)):
                for name, one in more.items():
                    _totals_of(totals, name).add(one)
        return merged


def _totals_of(totals: dict[str, TokenTotals], name: str) -> TokenTotals:
    if name not in totals and len(totals) >= _MOST_NAMES:
        name = _OTHERS
    return totals.setdefault(name, TokenTotals())
