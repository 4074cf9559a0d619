"""A reply's first and last blocks, for a policy that learns from them."""

from __future__ import annotations

from inference_engine_proxy_server.backends.reply_facts import read_facts, says_its_end
from inference_engine_proxy_server.routing.tracker import Tracker
from inference_engine_proxy_server.wire.reply_tail import ReplyTail

__all__ = ["ListeningTail"]


class ListeningTail(ReplyTail):
    """Tells ``learning`` when the reply begins, and, once it is complete, what it says of itself."""

    __slots__ = ("_has_begun", "_learning")

    def __init__(self, learning: Tracker) -> None:
        super().__init__()
        self._learning = learning
        self._has_begun = False

    def take(self, block: bytes) -> None:
        """``block`` goes to the client."""
        if not self._has_begun:
            self._has_begun = True
            self._learning.begin()
        super().take(block)

    def end(self, *, is_complete: bool) -> None:
        """No more of it goes to the client: all has, or it broke off.

        Many clients leave as soon as an event says that it was the last one, before the reply's end. That is no less
        complete.
        """
        learning = self._learning
        if not is_complete and not says_its_end(self.read()):
            return
        learning.complete(read_facts(self.read()) if learning.wants_facts() else None)
