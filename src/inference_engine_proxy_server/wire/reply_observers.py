"""The observers of one reply.

Observers are called in the order in which they were added. Without observers, and with observers that do not want every
block, a streamed chunk takes the direct path from socket to socket. An editor may change what the client receives;
observers see the reply as it was before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_excerpt import Framed, ReplyExcerpt
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["ReplyEditor", "ReplyObservers"]

_Kind = TypeVar("_Kind", bound=ReplyObserver)


class ReplyEditor(Protocol):
    """Changes a reply after its observers have seen it."""

    def edit(self, block: bytes) -> bytes:
        """What the client receives in place of ``block``; may be empty. Blocks keep their chunk framing."""

    def write_function(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """A function that edits a chunk of the direct path, and passes it to ``write``."""


class ReplyObservers:
    """The observers of one reply.

    Args:
        reply: the reply.
    """

    __slots__ = ("_editor", "_observers", "_reply", "_unstarted")

    def __init__(self, reply: Framed) -> None:
        self._reply = reply
        self._editor: ReplyEditor | None = None
        self._observers: tuple[ReplyObserver, ...] = ()
        self._unstarted: tuple[ReplyObserver, ...] = ()  # have not seen a block yet

    def add(self, *observers: ReplyObserver) -> None:
        """Add observers, which see the blocks from the next one on."""
        self._observers += observers
        self._unstarted += observers

    def excerpt(self) -> ReplyExcerpt:
        """An observer that keeps what the reply's body reports; all observers that read it share it."""
        excerpt = self.find(ReplyExcerpt)
        if excerpt is None:
            excerpt = ReplyExcerpt(self._reply)
            self.add(excerpt)
        return excerpt

    def find(self, kind: type[_Kind]) -> _Kind | None:
        """The observer of this kind; ``None`` if there is none."""
        for observer in self._observers:
            if isinstance(observer, kind):
                return observer
        return None

    @property
    def has_editor(self) -> bool:
        """Whether an editor changes the reply."""
        return self._editor is not None

    def edit_with(self, editor: ReplyEditor) -> None:
        """Let ``editor`` change the reply, which has not begun, in place of an earlier editor."""
        self._editor = editor

    def remove(self, *observers: ReplyObserver) -> None:
        """Remove observers, which then see nothing more."""
        self._observers = tuple(one for one in self._observers if one not in observers)
        self._unstarted = tuple(one for one in self._unstarted if one not in observers)

    def show(self, block: bytes) -> bytes:
        """Show a block of the body to all observers that want it. Returns what the client receives of it."""
        if self._unstarted:
            unstarted, self._unstarted = self._unstarted, ()
            for observer in unstarted:
                observer.begin(block)
        for observer in self._observers:
            if observer.wants_blocks:
                observer.take(block)
        return block if self._editor is None else self._editor.edit(block)

    def end(self, outcome: Outcome) -> None:
        """Tell all observers how the exchange ended."""
        for observer in self._observers:
            observer.end(outcome)

    def write_function(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """A function that shows a block to the observers and then writes it; ``write`` itself if none wants blocks."""
        if self._editor is not None:
            write = self._editor.write_function(write)
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
