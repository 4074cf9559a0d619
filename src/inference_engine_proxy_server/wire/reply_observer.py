"""The base class of reply observers: parts of the proxy that watch a reply on its way to the client."""

from __future__ import annotations

from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["ReplyObserver"]


class ReplyObserver:
    """Watches one reply. A subclass overrides the methods it needs.

    Attributes:
        wants_blocks: whether :meth:`take` is called.
    """

    __slots__ = ()

    wants_blocks = False

    def begin(self, block: bytes) -> None:
        """The first block of the reply's body is about to be sent."""

    def take(self, block: bytes) -> None:
        """A block of the body, the first one included, is about to be sent. Blocks keep their chunk framing."""

    def end(self, outcome: Outcome) -> None:
        """The exchange has ended; called once."""
