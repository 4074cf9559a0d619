"""The first and the last blocks of a reply, for who wants to read what an engine says there.

They are kept by reference while they go their way: a streamed token costs one append more, and no copy is made before
somebody reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["ReplyTail"]

_BLOCKS = 16  # what engines say at the end, and some events by whose length others' number can be estimated
_BLOCK_BYTES = 4096  # of one that is longer than those of a stream


class ReplyTail:
    """Keeps them, chunks' framing and all, of one reply."""

    __slots__ = ("_first", "_last")

    def __init__(self) -> None:
        self._first = b""
        self._last: deque[bytes] = deque(maxlen=_BLOCKS)

    def take(self, block: bytes) -> None:
        """``block`` goes to the client."""
        if not self._first:
            self._first = block[:_BLOCK_BYTES]
            block = block[_BLOCK_BYTES:]
        self._last.append(block[-_BLOCK_BYTES:])

    def before(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Takes blocks of a stream's single tokens, and passes them on to ``write``. Needs the first one before."""
        append = self._last.append

        def take_and_write(block: bytes) -> None:
            append(block)
            write(block)

        return take_and_write

    def read(self) -> bytes:
        """What is kept, in order."""
        return b"".join((self._first, *self._last))
