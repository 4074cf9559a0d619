"""Sessions behind a proxy: on which engine each of them is served."""

from __future__ import annotations

from collections.abc import Sequence

from support.http_client import chat, send
from support.llama_server import LlamaServer

__all__ = ["engines_of_sessions"]

_SESSIONS = 12
_PROMPT_TOKENS = "llamacpp:prompt_tokens_total"


async def engines_of_sessions(url: str, engines: Sequence[LlamaServer]) -> list[set[int]]:
    """Send three requests of each of twelve sessions; returns the indexes of the engines that read them, by session."""
    used = []
    for session in range(_SESSIONS):
        before = [engine.metrics()[_PROMPT_TOKENS] for engine in engines]
        for _ in range(3):
            headers = {"X-Session-Id": f"session-{session}"}
            body = chat(model="qwen3-14b", cache_prompt=False)
            assert (await send(url, "/v1/chat/completions", body, headers=headers)).status == 200
        after = [engine.metrics()[_PROMPT_TOKENS] for engine in engines]
        used.append({number for number, tokens in enumerate(before) if after[number] > tokens})
    return used
