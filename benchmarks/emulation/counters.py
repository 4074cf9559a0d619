"""What engines count themselves, real ones and emulated ones alike."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["PromptTokens", "prompt_tokens"]

_LLAMACPP = ("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total")
_VLLM = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Prompt tokens that an engine has read, and that it had cached."""

    read: float
    cached: float

    def since(self, earlier: PromptTokens) -> PromptTokens:
        return PromptTokens(self.read - earlier.read, self.cached - earlier.cached)


def prompt_tokens(ports: Iterable[int]) -> list[PromptTokens]:
    """The counters in ``/metrics`` of each engine.

    Raises:
        OSError: an engine does not answer.
        ValueError: an engine has neither llama.cpp's nor vLLM's counters.
    """
    return [_of(port) for port in ports]


def _of(port: int) -> PromptTokens:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_PATIENCE_SECONDS) as reply:
        page = reply.read().decode()
    lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    values = {series.partition("{")[0]: float(value) for series, _, value in lines if series}
    if _LLAMACPP[0] in values:
        return PromptTokens(values[_LLAMACPP[0]], values[_LLAMACPP[1]])
    if _VLLM[0] in values:
        return PromptTokens(values[_VLLM[0]] - values[_VLLM[1]], values[_VLLM[1]])
    raise ValueError(f"the engine on port {port} counts no prompt tokens")
