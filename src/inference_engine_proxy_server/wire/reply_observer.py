"""The base class of reply observers: parts of the proxy that watch a reply on its way to the client.

An exchange calls its observers in the order in which they were added. Without observers, and with observers that do not
want every block, a streamed chunk takes the direct path from socket to socket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["ReplyObserver", "ReplyObservers"]


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


class ReplyObservers:
    """The observers of one reply."""

    __slots__ = ("_observers", "_unstarted")

    def __init__(self) -> None:
        self._observers: tuple[ReplyObserver, ...] = ()
        self._unstarted: tuple[ReplyObserver, ...] = ()  # have not seen a block yet

    def __iter__(self) -> Iterator[ReplyObserver]:
        return iter(self._observers)

    def add(self, observer: ReplyObserver) -> None:
        """Add an observer, which sees the blocks from the next one on."""
        self._observers = (*self._observers, observer)
        self._unstarted = (*self._unstarted, observer)

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
