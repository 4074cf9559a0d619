"""What a stream has delivered to its client: enough to continue it elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod

from inference_engine_proxy_server.resume.event_form import EventForm
from inference_engine_proxy_server.resume.events import MALFORMED, data_of, split_events

__all__ = ["MOST_TEXT_BYTES", "Transcript"]

MOST_TEXT_BYTES = 256 * 1024
"""Longest text of a stream that can be resumed."""

_RAW_BYTES = 4 * 1024  # of events that were not read yet: reading many together costs less than one by one
_PIECE_CHARACTERS = 1024  # of text in one string: many short strings would take ten times the memory of their text
_ANY_TEXT = b"any text"


class Transcript(ABC):
    """The events of one stream.

    Attributes:
        text_events: events with text so far; at least as many tokens were delivered.
        finish_reason: why the answer ended, as delivered; ``None`` before.
        has_usage: whether the usage of the whole answer was delivered.
        is_done: whether the last event of the stream was delivered.
        problem: the rule that the delivered events break, see :mod:`~.rules`; ``None`` if they break none.
    """

    __slots__ = (
        "_form", "_raw", "_raw_bytes", "_text", "_text_bytes", "finish_reason", "has_usage", "is_done", "problem",
        "text_events",
    )  # fmt: skip

    def __init__(self) -> None:
        self._form: EventForm | None = None  # of the latest event
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._text: list[str] = []
        self._text_bytes = 0
        self.text_events = 0
        self.finish_reason: str | None = None
        self.has_usage = False
        self.is_done = False
        self.problem: str | None = None

    def __repr__(self) -> str:
        return f"<Transcript {self.text_events} events, {self._raw_bytes} bytes not read yet, {self.finish_reason}>"

    @property
    def text(self) -> str:
        """The delivered text, as far as :meth:`read` has read it."""
        return "".join(self._text)

    @property
    def events(self) -> int:
        """About as many events with text as were delivered: of those that were not read yet, the blocks are counted."""
        return self.text_events + len(self._raw)

    @property
    @abstractmethod
    def is_message(self) -> bool:
        """Whether the text is that of a message.

        A continuation of a message passes a chat template, and some engines begin by repeating the message.
        """

    def take(self, events: bytes) -> None:
        """Add whole events, which are delivered now."""
        self._raw.append(events)
        self._raw_bytes += len(events)
        if self._raw_bytes > _RAW_BYTES:
            self.read()

    def read(self) -> None:
        """Read the events that were added since the last call."""
        events, _ = split_events(b"".join(self._raw))
        self._raw.clear()
        self._raw_bytes = 0
        if self.problem is not None:
            return
        pieces = self._text
        complete = len(pieces) - 1 if pieces and len(pieces[-1]) < _PIECE_CHARACTERS else len(pieces)
        self._read_all(events)
        pieces[complete:] = ["".join(pieces[complete:])]
        if self._text_bytes > MOST_TEXT_BYTES:
            self.problem = "long_text"
            pieces.clear()

    def _read_all(self, events: list[bytes]) -> None:
        """Read events. Of those that differ only in their text, all texts are read at once."""
        form = self._form
        alike: list[bytes] = []
        for event in events:
            if form is not None and event.startswith(form.before) and event.endswith(form.after):
                alike.append(event)
                continue
            self._read_alike(form, alike)
            alike = []
            self._read_event(event)
            form = EventForm.of(event)
        self._read_alike(form, alike)
        self._form = form

    def _read_alike(self, form: EventForm | None, events: list[bytes]) -> None:
        if form is None or not events:
            return
        if form.adds_only_text is None:
            form.adds_only_text = self._adds_only_text(form)
        texts = form.texts(events) if form.adds_only_text else None
        if texts is not None:
            self._add("".join(texts), events=sum(map(bool, texts)))
            return
        for event in events:
            self._read_event(event)

    def _adds_only_text(self, form: EventForm) -> bool:
        """Whether a further event of this form does nothing but add the text that stands in the form's place."""
        other = type(self)()
        other.take(form.with_text(_ANY_TEXT))
        other.read()
        return other.problem is None and other.text == _ANY_TEXT.decode()

    def _read_event(self, event: bytes) -> None:
        data = data_of(event)
        if data is None:
            return
        try:
            self._read(data)
        except MALFORMED:
            self.problem = "unknown_events"

    @abstractmethod
    def _read(self, data: bytes) -> None:
        """Read the data of one event.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: it is no event of the API.
        """

    def _add(self, text: str, events: int = 1) -> None:
        self._text.append(text)
        self._text_bytes += len(text.encode(errors="surrogatepass"))
        self.text_events += events
