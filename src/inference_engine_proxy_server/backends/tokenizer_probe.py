"""Asks an engine for the tokens of a fixed text, to compare tokenizers."""

from __future__ import annotations

import msgspec

from inference_engine_proxy_server.backends.fingerprint import digest
from inference_engine_proxy_server.backends.replies import Get, UnreadableState, decoded

__all__ = ["SKIPPED_POLLS", "TokenizerProbe"]

# Tokenizers differ in spaces, digits, other scripts, and code. No special tokens, which engines treat differently.
_TEXT = "The 3 quick\tfoxes  ate 1,234.50 of it.\n\ndef f(x): return x**2  # naïve 快速的狐狸 быстрая 🦊"

SKIPPED_POLLS = 20


class TokenizerProbe:
    """Asks one engine process once; after silence again, but not at every poll, which the question delays.

    Args:
        get: asks the backend.
        members: of the request. The value ``...`` stands for the text.
    """

    def __init__(self, get: Get, **members: object) -> None:
        self._get = get
        self._body = msgspec.json.encode({name: _TEXT if value is ... else value for name, value in members.items()})
        self._is_answered = False
        self._skips = 0
        self._hash: str | None = None

    async def hash(self) -> str | None:
        """A hash of the tokens; ``None`` while there is no answer, and if the engine has no ``/tokenize``."""
        if self._is_answered or self._skips > 0:
            self._skips -= 1
            return self._hash
        try:
            reply = await self._get("/tokenize", self._body)
        except (OSError, UnreadableState):
            self._skips = SKIPPED_POLLS
            return None
        self._is_answered = True
        answer = decoded(reply.body, _Tokens) if reply.status == 200 else None
        if answer is not None and answer.tokens:
            self._hash = digest(",".join(map(str, answer.tokens)).encode())
        return self._hash


class _Tokens(msgspec.Struct):
    tokens: list[int]
