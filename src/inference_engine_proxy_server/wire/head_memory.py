"""One-entry cache of parsed header sections.

Successive header sections from one client or one backend mostly differ in Content-Length only.
"""

from __future__ import annotations

import re
from typing import Generic, Protocol, TypeVar

__all__ = ["HeadMemory"]

# The parser has already checked that the field is valid and occurs at most once.
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*+([0-9]++)", re.IGNORECASE)
_MOST_DIGITS = 18  # the parser's limit


class Head(Protocol):
    """A parsed header section."""

    content_length: int | None


H = TypeVar("H", bound=Head)


class HeadMemory(Generic[H]):
    """Caches the last parsed section.

    If two sections differ in the digits of Content-Length only, their parsed heads differ in ``content_length`` only:
    parsing is a pure function of the section, and those digits have no other effect. Comparing bytes is several times
    cheaper than parsing.
    """

    __slots__ = ("_after", "_before", "_head", "_section")

    def __init__(self) -> None:
        self._section = b""
        self._before = b""
        self._after: bytes | None = None  # None if the section has no Content-Length
        self._head: H | None = None

    def recall(self, section: bytes) -> H | None:
        """The parsed head of ``section`` if it equals the cached section except for the length; else ``None``.

        Every call returns the same object, whose ``content_length`` the next call overwrites.
        """
        head, after = self._head, self._after
        if head is None or section == self._section:
            return head
        if after is None or not (section.startswith(self._before) and section.endswith(after)):
            return None
        digits = section[len(self._before) : len(section) - len(after)]
        if not digits.isdigit() or digits[0] == 48 or len(digits) > _MOST_DIGITS:
            return None  # including "0": leading zeros are invalid, and the parser checks that
        head.content_length = int(digits)
        self._section = section
        return head

    def remember(self, section: bytes, head: H) -> None:
        """Cache ``head``, the result of parsing a valid ``section``."""
        length = _LENGTH.search(section)
        self._head = head
        self._section = section
        self._before = section[: length.start(1)] if length else b""
        self._after = section[length.end(1) :] if length else None
