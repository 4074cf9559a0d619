"""Decoder and encoder for chunked bodies. Sans-I/O.

Follows RFC 9112, 7.1, strictly: sizes are plain hexadecimal of at most 16 digits, lines end in CRLF only, and
extensions and trailer fields are limited in length and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["SMALL_CHUNKS", "ChunkedBody", "InvalidChunk", "TooLongBody", "last_chunk", "one_chunk"]

_PLAIN_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*+)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+")
_LINE_BYTES = 4096  # limit for a size line with its extensions, and for all trailer lines together; nginx's limit

last_chunk = b"0\r\n\r\n"

_STREAM_ENDS = (b"data: [DONE]\n\n", b'event: message_stop\ndata: {"type":"message_stop"}\n\n')

SMALL_CHUNKS = {b"%x" % size: size for size in range(1, 4096) if size not in map(len, _STREAM_ENDS)}
"""Chunk size by plain size line, for chunks as small as one token produces. A line found here is valid: it contains
nothing but the size. The events that end streams are left out: the block ahead of them, which reports tokens, is kept
by :class:`.Exchange` because they do not take the direct path."""


def one_chunk(payload: bytes) -> bytes:
    """``payload``, which must not be empty, encoded as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


_Reader = Callable[["ChunkedBody", bytes, int, list[bytes]], int]
"""Parses one element of a body at a position in a block, appends the payload found, returns the position after it."""


class InvalidChunk(Exception):
    """The bytes are not a chunked body."""


class TooLongBody(Exception):
    """The chunk sizes announced so far exceed the body's limit."""


class ChunkedBody:
    """Incremental parser for one chunked body.

    Args:
        limit_bytes: longest payload allowed; ``None`` for no limit.

    Attributes:
        between_chunks: the parser is at a chunk boundary.
        complete: the body's last byte has been parsed.
        excess: bytes after the body's end; they belong to the next message.
    """

    __slots__ = ("_left", "_line", "_missing", "_read", "_trailer_bytes", "between_chunks", "complete", "excess")

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._left = limit_bytes  # the limit minus all chunk sizes announced so far
        self.complete = False
        self.excess = b""
        self._read: _Reader = ChunkedBody._size_line  # not bound: a bound method would make a reference cycle
        self.between_chunks = True
        self._line = b""  # start of an incomplete line
        self._missing = 0  # payload bytes of the current chunk still to come
        self._trailer_bytes = 0

    def whole_chunks(self, block: bytes) -> bool:
        """Whether ``block`` consists of complete chunks without extensions, which can be forwarded unchanged.

        If it does, they count as parsed. If not, the parser's state is unchanged and ``block`` must go to :meth:`feed`.
        """
        if not self.between_chunks:
            return False
        position = 0
        end = len(block)
        while position < end:
            match = _PLAIN_SIZE_LINE.match(block, position)
            if match is None:
                return False
            size = int(match[1], 16)
            position = match.end() + size + 2
            if position > end or block[position - 2 : position] != b"\r\n":
                return False
            if not size:
                if position != end:
                    return False
                self.complete = True
        return True

    def feed(self, block: bytes) -> list[bytes]:
        """Parse ``block`` and return its pieces of payload, in order; none is empty.

        Raises:
            InvalidChunk: the bytes are not a chunked body.
            TooLongBody: the body exceeds its limit.
        """
        payload: list[bytes] = []
        if self._line:
            block = self._line + block
            self._line = b""
        position = 0
        while position < len(block) and not self.complete:
            position = self._read(self, block, position, payload)
        if self.complete:
            self.excess = block[position:]
        return payload

    def _payload(self, block: bytes, position: int, payload: list[bytes]) -> int:
        piece = block[position : position + self._missing]
        payload.append(piece)
        self._missing -= len(piece)
        if not self._missing:
            self._read = ChunkedBody._payload_end
        return position + len(piece)

    def _payload_end(self, block: bytes, position: int, _payload: list[bytes]) -> int:
        line_end = block[position : position + 2]
        if line_end == b"\r\n":
            self._read = ChunkedBody._size_line
            self.between_chunks = True
        elif line_end == b"\r":
            self._line = line_end
        else:
            raise InvalidChunk("a chunk is longer than its size")
        return position + len(line_end)

    def _size_line(self, block: bytes, position: int, _payload: list[bytes]) -> int:
        self.between_chunks = False
        end = self._line_end(block, position)
        if end is None:
            return len(block)
        match = _SIZE_LINE.fullmatch(block, position, end)
        if match is None:
            raise InvalidChunk("a chunk's size is not a plain hexadecimal number")
        self._missing = int(match[1], 16)
        if self._left is not None:
            self._left -= self._missing
            if self._left < 0:
                raise TooLongBody
        self._read = ChunkedBody._payload if self._missing else ChunkedBody._trailer_line
        return end + 2

    def _trailer_line(self, block: bytes, position: int, _payload: list[bytes]) -> int:
        end = self._line_end(block, position)
        if end is None:
            return len(block)
        self._trailer_bytes += end - position
        if end == position:
            self.complete = True
        elif self._trailer_bytes > _LINE_BYTES or not _TRAILER_LINE.fullmatch(block, position, end):
            raise InvalidChunk("a trailer field is malformed or too long")
        return end + 2

    def _line_end(self, block: bytes, position: int) -> int | None:
        """The end of the line at ``position``; if the line is incomplete, stores its start and returns ``None``."""
        end = block.find(b"\n", position)
        line_bytes = (end if end >= 0 else len(block)) - position
        if line_bytes > _LINE_BYTES or (end >= 0 and (end == position or block[end - 1] != 13)):
            raise InvalidChunk("a line is too long or does not end in CRLF")
        if end < 0:
            self._line = block[position:]
            return None
        return end - 1
