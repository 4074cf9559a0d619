"""The first and the last blocks of a reply, for observers that read what an engine reports there.

Blocks are kept by reference, so a streamed token costs one append and no copy.
"""

from __future__ import annotations

from collections import deque

from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["ReplyExcerpt"]

_BLOCKS = 16  # holds the usage report, and enough events to estimate the length of the others
_BLOCK_BYTES = 4096  # longer blocks are cut: the usage report stands at one of a reply's ends


class ReplyExcerpt(ReplyObserver):
    """Keeps both ends of one reply's body, chunk framing included."""

    __slots__ = ("_first", "_last")

    wants_blocks = True

    def __init__(self) -> None:
        self._first = b""
        self._last: deque[bytes] = deque(maxlen=_BLOCKS)

    def take(self, block: bytes) -> None:
        """Keep ``block`` for a while; the first one stays."""
        if not self._first:
            self._first = block[:_BLOCK_BYTES]
            block = block[_BLOCK_BYTES:]
        self._last.append(block[-_BLOCK_BYTES:])

    def read(self) -> bytes:
        """The blocks kept, in order."""
        return b"".join((self._first, *self._last))
