"""The observers of one reply.

Observers are called in the order in which they were added. Without observers, and with observers that do not want every
block, a streamed chunk takes the direct path from socket to socket.
"""

from __future__ import annotations

from collections.abc import Callable

from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_excerpt import Framed, ReplyExcerpt
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["ReplyObservers"]


class ReplyObservers:
    """The observers of one reply.

    Args:
        reply: the reply.
    """

    __slots__ = ("_observers", "_reply", "_unstarted")

    def __init__(self, reply: Framed) -> None:
        self._reply = reply
        self._observers: tuple[ReplyObserver, ...] = ()
        self._unstarted: tuple[ReplyObserver, ...] = ()  # have not seen a block yet

    def add(self, observer: ReplyObserver) -> None:
        """Add an observer, which sees the blocks from the next one on."""
        self._observers = (*self._observers, observer)
        self._unstarted = (*self._unstarted, observer)

    def excerpt(self) -> ReplyExcerpt:
        """An observer that keeps what the reply's body reports; all observers that read it share it."""
        for observer in self._observers:
            if isinstance(observer, ReplyExcerpt):
                return observer
        excerpt = ReplyExcerpt(self._reply)
        self.add(excerpt)
        return excerpt

    def remove(self, *observers: ReplyObserver) -> None:
        """Remove observers, which then see nothing more."""
        self._observers = tuple(one for one in self._observers if one not in observers)
        self._unstarted = tuple(one for one in self._unstarted if one not in observers)

    def show(self, block: bytes) -> None:
        """Show a block of the body to all observers that want it."""
        if self._unstarted:
            unstarted, self._unstarted = self._unstarted, ()
            for observer in unstarted:
                observer.begin(block)
        for observer in self._observers:
            if observer.wants_blocks:
                observer.take(block)

    def end(self, outcome: Outcome) -> None:
        """Tell all observers how the exchange ended."""
        for observer in self._observers:
            observer.end(outcome)

    def write_function(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """A function that shows a block to the observers and then writes it; ``write`` itself if none wants blocks."""
        takers = [observer.take for observer in self._observers if observer.wants_blocks]
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
