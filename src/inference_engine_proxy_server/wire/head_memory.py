"""Header sections that come again: those of one client, or of one backend, mostly differ in the body's length alone."""

from __future__ import annotations

import re
from typing import Generic, Protocol, TypeVar

__all__ = ["HeadMemory"]

# The digits of a field that the parser has found to be there once at most, and valid.
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*+([0-9]++)", re.IGNORECASE)
_MOST_DIGITS = 18  # as the parser allows


class Head(Protocol):
    """What was read of a header section."""

    content_length: int | None


H = TypeVar("H", bound=Head)


class HeadMemory(Generic[H]):
    """The last section that was read, and what it said.

    A section that is the same but for the digits of its Content-Length says the same but for its length: reading is
    a pure function of the section, and those digits have no other effect. Comparing is several times cheaper.
    """

    __slots__ = ("_after", "_before", "_head")

    def __init__(self) -> None:
        self._before = b""
        self._after: bytes | None = None  # None: the section has no Content-Length, and ``before`` is all of it
        self._head: H | None = None

    def recall(self, section: bytes) -> H | None:
        """What ``section`` says, if it is the last one again; else ``None``.

        It is the same object each time, so its length is this section's until the next one comes.
        """
        head, after = self._head, self._after
        if head is None or not section.startswith(self._before):
            return None
        if after is None:
            return head if len(section) == len(self._before) else None
        digits = section[len(self._before) : len(section) - len(after)]
        if not digits.isdigit() or digits[0] == 48 or len(digits) > _MOST_DIGITS or not section.endswith(after):
            return None  # a length of 0, too: it may be written in one way only, which the parser knows
        head.content_length = int(digits)
        return head

    def remember(self, section: bytes, head: H) -> None:
        """Keep what the parser has read of a valid ``section``."""
        length = _LENGTH.search(section)
        self._head = head
        self._before = section[: length.start(1)] if length else section
        self._after = section[length.end(1) :] if length else None
