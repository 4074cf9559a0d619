"""The form that the events of a stream share: all bytes of an event except its text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

__all__ = ["EventForm"]

_TEXT = re.compile(rb'"(?:content|text|delta)":[ ]?"((?:[^"\\]++|\\.)*+)"')  # with the names of all APIs
_texts = msgspec.json.Decoder(list[str]).decode


class EventForm:
    """What stands before and after the text of an event, which is a JSON string.

    Args:
        before, after: both include a quotation mark of the string.

    Attributes:
        adds_only_text: whether such events do nothing but add their texts; ``None`` until the transcript has checked.
    """

    __slots__ = ("adds_only_text", "after", "before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self.before = before
        self.after = after
        self.adds_only_text: bool | None = None

    @staticmethod
    def of(event: bytes) -> EventForm | None:
        """The form of ``event``; ``None`` if it has no text."""
        found = _TEXT.search(event)
        return None if found is None else EventForm(event[: found.start(1)], event[found.end(1) :])

    def with_text(self, text: bytes) -> bytes:
        """An event of this form with ``text``, which is the inside of a JSON string."""
        return self.before + text + self.after

    def texts(self, events: Sequence[bytes]) -> list[str] | None:
        """The texts of events, at least one, that begin and end like this form. All are decoded in one call.

        Returns:
            One text for each event; ``None`` if what stands between both parts is not always one JSON string.
        """
        begin, end = len(self.before), -len(self.after)
        if min(map(len, events)) < begin - end:  # both parts overlap
            return None
        try:
            texts = _texts(b'["%b"]' % b'","'.join([event[begin:end] for event in events]))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return texts if len(texts) == len(events) else None
