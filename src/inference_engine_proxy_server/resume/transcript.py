"""What a stream has delivered to its client: enough to continue it elsewhere."""

from __future__ import annotations

import msgspec

from inference_engine_proxy_server.resume.events import (
    ABSENT,
    MALFORMED,
    Choice,
    StreamEvent,
    data_of,
    is_done,
    read_event,
    split_events,
)

__all__ = ["MOST_TEXT_BYTES", "Transcript"]

MOST_TEXT_BYTES = 256 * 1024
"""Longest text of a stream that can be resumed."""

_RAW_BYTES = 16 * 1024  # of events that are kept as they came, because reading each event at once would cost more
_NOTHING = (b"null", b'""', b"[]")
_REASONING = frozenset({"reasoning", "reasoning_content"})
_TOOL_CALLS = frozenset({"tool_calls", "function_call"})
_IDENTITY = ("id", "created", "model", "object", "system_fingerprint")


class Transcript:
    """The events of one stream.

    Attributes:
        identity: the members that all events of the stream share, as the client has received them.
        text_events: events with text so far; at least as many tokens were delivered.
        role_sent: whether the role of the message was delivered.
        finish_reason: as delivered; ``None`` before.
        has_usage: whether the usage was delivered.
        is_done: whether ``[DONE]`` was delivered.
        problem: the rule that the delivered events break, see :mod:`~.rules`; ``None`` if they break none.
    """

    __slots__ = (
        "_raw", "_raw_bytes", "_text", "_text_bytes", "finish_reason", "has_usage", "identity", "is_done", "problem",
        "role_sent", "text_events",
    )  # fmt: skip

    def __init__(self) -> None:
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._text: list[str] = []
        self._text_bytes = 0
        self.identity: dict[str, msgspec.Raw] = {}
        self.text_events = 0
        self.role_sent = False
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
    def is_chat(self) -> bool:
        """Whether the events are those of a chat completion."""
        return b"chat" in bytes(self.identity.get("object", b""))

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
        read_before = len(self._text)
        for event in events:
            data = data_of(event)
            if data is None:
                continue
            if is_done(data):
                self.is_done = True
                continue
            try:
                self._read(read_event(data))
            except MALFORMED:
                self.problem = "unknown_events"
        self._text[read_before:] = [
            "".join(self._text[read_before:])
        ]  # a short string takes 50 bytes more than its text
        if self._text_bytes > MOST_TEXT_BYTES:
            self.problem = "long_text"
            self._text.clear()

    def _read(self, event: StreamEvent) -> None:
        if not self.identity:
            raws = {name: getattr(event, name) for name in _IDENTITY}
            # A copy, because a raw value refers to the whole block that it was read from.
            self.identity = {name: msgspec.Raw(bytes(raw)) for name, raw in raws.items() if raw != ABSENT}
        if event.choices is None:
            self.problem = "unknown_events"
            return
        if event.usage is not None and not event.choices:
            self.has_usage = True
        for choice in event.choices:
            if choice.index:
                self.problem = "several_answers"
            self._read_choice(choice)

    def _read_choice(self, choice: Choice) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        text = choice.text
        for name, raw in (choice.delta or {}).items():
            if name == "role":
                self.role_sent = True
            elif name == "content":
                text = msgspec.json.decode(raw, type=str | None)
            elif bytes(raw) not in _NOTHING:
                self.problem = _problem_of(name)
        if text:
            self._text.append(text)
            self._text_bytes += len(text.encode(errors="surrogatepass"))
            self.text_events += 1


def _problem_of(member: str) -> str:
    if member in _REASONING:
        return "reasoning"
    return "tool_calls" if member in _TOOL_CALLS else "unknown_events"
