"""A reply's first and last blocks, for a policy that learns from them."""

from __future__ import annotations

from inference_engine_proxy_server.backends.reply_facts import read_facts
from inference_engine_proxy_server.core.backend import Learning
from inference_engine_proxy_server.wire.reply_tail import ReplyTail

__all__ = ["ListeningTail"]


class ListeningTail(ReplyTail):
    """Tells ``learning`` when the reply begins, and, once it is complete, what it says of itself."""

    __slots__ = ("_has_begun", "_learning")

    def __init__(self, learning: Learning) -> None:
        super().__init__()
        self._learning = learning
        self._has_begun = False

    def take(self, block: bytes) -> None:
        """``block`` goes to the client."""
        if not self._has_begun:
            self._has_begun = True
            self._learning.begin()
        super().take(block)

    def complete(self) -> None:
        """All of it has gone to the client."""
        self._learning.complete(read_facts(self.read()))
