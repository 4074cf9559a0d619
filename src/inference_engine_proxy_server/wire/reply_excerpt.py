"""The parts of a reply in which engines report facts: both ends, and every usage or timing report in between.

Blocks are kept by reference, so a streamed token costs one append and no copy. After every 64 KiB, the blocks are
searched and dropped, which costs a fraction of what sending them costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["Framed", "ReplyExcerpt"]

_KEPT_BYTES = 16 * 1024
_END_BYTES = 4096  # kept of each end; longer than any report, so that no report is lost where two searches meet
_REPORTS = 8  # kept from the middle: the first one and the last ones
# A whole object. In generated text, a name would have a backslash before its closing quote.
_REPORT = re.compile(
    rb'"(?:usage|timings)"\s*+:\s*+\{(?:[^{}]{1,2048}+|\{(?:[^{}]{1,2048}+|\{[^{}]{0,2048}+\}){0,64}+\}){0,64}+\}'
)
_EVENT, _TIGHT_EVENT = b"\ndata: {", b"\ndata:{"


_Parsed = TypeVar("_Parsed")


class Framed(Protocol):
    """A reply whose framing is known once its body begins."""

    takes_chunks: bool


class ReplyExcerpt(ReplyObserver):
    """Keeps the parts of one reply's body that may have reports, without chunk framing.

    Args:
        reply: says whether the blocks are chunks.
    """

    __slots__ = ("_blocks", "_bytes", "_events", "_first", "_last", "_parsed", "_reply", "_reports", "_whole")

    wants_blocks = True

    def __init__(self, reply: Framed) -> None:
        self._reply: Framed | None = reply
        self._whole: bytes | None = None  # what :meth:`read` returns; ``None`` before the end
        self._blocks: list[bytes] = []  # not searched yet
        self._bytes = 0
        self._first = b""  # beginning of the body; empty before the first search
        self._last = b""  # end of what has been searched
        self._reports: list[bytes] = []
        self._events = 0
        self._parsed: tuple[object, object] | None = None

    def take(self, block: bytes) -> None:
        """Keep ``block`` until it is searched."""
        self._blocks.append(block)
        self._bytes += len(block)
        if self._bytes > _KEPT_BYTES:
            self._search()

    def read(self) -> bytes:
        """The whole body if it is short; else its beginning, its reports and its end, separated by blank lines."""
        if self._whole is not None:
            return self._whole
        rest = self._last + self._payload()
        return b"\n\n".join((self._first, *self._reports, rest)) if self._first else rest

    def end(self, outcome: Outcome) -> None:
        """Let go of the reply, which may refer to its excerpt from now on."""
        del outcome
        self._events, self._whole = self.events(), self.read()
        self._reply = None
        self._blocks.clear()
        self._last = b""

    def parsed(self, parse: Callable[[bytes], _Parsed]) -> _Parsed:
        """``parse(self.read())`` at the end of the reply, computed once for all observers with the same ``parse``."""
        if self._parsed is None or self._parsed[0] is not parse:
            self._parsed = (parse, parse(self.read()))
        return cast(_Parsed, self._parsed[1])

    def events(self) -> int:
        """The number of events of the reply so far whose data is a JSON object."""
        return self._events + _events_in(self._last + self._payload()) - _events_in(self._last)

    def _payload(self) -> bytes:
        body = b"".join(self._blocks)
        return _without_framing(body) if self._reply is not None and self._reply.takes_chunks else body

    def _search(self) -> None:
        text = self._last + self._payload()
        self._events += _events_in(text) - _events_in(self._last)
        self._first = self._first or text[:_END_BYTES]
        if b'"usage"' in text or b'"timings"' in text:
            reports = self._reports + [found[0] for found in _REPORT.finditer(text)]
            self._reports = reports[:1] + reports[1:][1 - _REPORTS :]
        self._last = text[-_END_BYTES:]
        self._blocks.clear()
        self._bytes = 0


def _events_in(text: bytes) -> int:
    """The number of events in ``text`` whose data is a JSON object; the cheapest way to count them."""
    return text.count(_EVENT) + text.count(_TIGHT_EVENT) + text.startswith((_EVENT[1:], _TIGHT_EVENT[1:]))


def _without_framing(chunks: bytes) -> bytes:
    """The payload of whole chunks, as :class:`Exchange` shows them to observers."""
    pieces = []
    position, end = 0, len(chunks)
    while position < end:
        line_end = chunks.find(b"\r\n", position)
        begins = line_end + 2
        position = begins + int(chunks[position:line_end], 16)
        pieces.append(chunks[begins:position])
        position += 2
    return b"".join(pieces)
