"""Usage and timings of a stream and its continuation together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

__all__ = ["UsageNames", "whole_timings", "whole_usage"]

_counts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class UsageNames(NamedTuple):
    """The members of a usage: tokens of the prompt and of the answer, and the details of the prompt."""

    prompt: str
    answer: str
    details: str


def whole_usage(usage: msgspec.Raw, delivered: int, names: UsageNames) -> dict[str, object]:
    """The usage of the whole stream.

    Args:
        usage: of the continuation; the delivered tokens are part of its prompt.
        delivered: tokens that were delivered before it.
        names: of its members.
    """
    counts: dict[str, object] = dict(_counts(usage))
    prompt, answer = _number(counts, names.prompt), _number(counts, names.answer)
    prompt, answer = max(0, prompt - delivered), answer + delivered  # the engine may split the text into fewer tokens
    counts[names.prompt], counts[names.answer] = prompt, answer
    if "total_tokens" in counts:
        counts["total_tokens"] = prompt + answer
    details = counts.get(names.details)
    if details is not None and bytes(details) != b"null":  # type: ignore[call-overload]
        cached: dict[str, object] = dict(_counts(details))  # type: ignore[arg-type]
        if "cached_tokens" in cached:
            cached["cached_tokens"] = min(_number(cached, "cached_tokens"), prompt)
        counts[names.details] = cached
    return counts


def whole_timings(timings: msgspec.Raw, delivered: int, milliseconds: float) -> dict[str, object]:
    """The timings of the whole stream (llama.cpp): of the prompt, only the part that the client sent counts.

    Args:
        timings: of the continuation.
        delivered: tokens that were delivered before it.
        milliseconds: for which earlier backends generated.
    """
    counts: dict[str, object] = dict(_counts(timings))
    read = _number(counts, "prompt_n") - delivered
    counts["prompt_n"] = max(0, read)
    if "cache_n" in counts:
        counts["cache_n"] = max(0, _number(counts, "cache_n") + min(0, read))
    predicted = _number(counts, "predicted_n") + delivered
    milliseconds += _number(counts, "predicted_ms")
    counts["predicted_n"] = predicted
    counts["predicted_ms"] = milliseconds
    counts["predicted_per_token_ms"] = milliseconds / predicted if predicted else 0
    counts["predicted_per_second"] = 1000 * predicted / milliseconds if milliseconds else 0
    return counts


def _number(counts: Mapping[str, object], name: str) -> float:
    raw = counts.get(name)
    return msgspec.json.decode(raw) or 0 if isinstance(raw, msgspec.Raw) else 0
