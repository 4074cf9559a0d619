"""The requests and tokens of each model and key since the start of the process."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from inference_engine_proxy_server.telemetry.request_record import RequestRecord

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

    def count(self, record: RequestRecord) -> None:
        """Add a request, if a backend answered it."""
        if record.backend is None:
            return
        one = TokenTotals(1, record.prompt_tokens or 0, record.cached_tokens or 0, record.output_tokens or 0)
        _add(self.by_model, record.model or "", one)
        _add(self.by_key, record.key or "", one)

    @classmethod
    def merged(cls, parts: Iterable[UsageTotals]) -> UsageTotals:
        """The totals of several workers together."""
        merged = cls()
        for part in parts:
            for totals, more in ((merged.by_model, part.by_model), (merged.by_key, part.by_key)):
                for name, one in more.items():
                    _add(totals, name, one)
        return merged


def _add(totals: dict[str, TokenTotals], name: str, one: TokenTotals) -> None:
    found = totals.get(name)
    if found is None:
        name = name if len(totals) < _MOST_NAMES else _OTHERS
        found = totals.setdefault(name, TokenTotals())
    found.add(one)
