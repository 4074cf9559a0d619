"""The base class of reply observers: parts of the proxy that watch a reply on its way to the client.

An exchange calls its observers in the order in which they were added. Without observers, and with observers that do not
want every block, a streamed chunk takes the direct path from socket to socket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["ReplyObserver", "observed_write"]


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


def observed_write(write: Callable[[bytes], None], observers: Sequence[ReplyObserver]) -> Callable[[bytes], None]:
    """A function that shows a block to ``observers`` and then writes it; ``write`` itself if none wants blocks."""
    takers = [observer.take for observer in observers if observer.wants_blocks]
    if not takers:
        return write
    if len(takers) == 1:
        [take] = takers

        def take_and_write(block: bytes) -> None:
            take(block)
            write(block)

        return take_and_write

    def take_all_and_write(block: bytes) -> None:
        for take in takers:
            take(block)
        write(block)

    return take_all_and_write
