"""The events of OpenAI's responses."""

from __future__ import annotations

import msgspec

from inference_engine_proxy_server.resume.events import ABSENT
from inference_engine_proxy_server.resume.transcript import Transcript

__all__ = ["BEGINNINGS", "ENDINGS", "ResponsesEvent", "ResponsesTranscript", "read_event"]

BEGINNINGS = ("response.created", "response.in_progress", "response.queued")
ENDINGS = ("response.completed", "response.incomplete")
_IDENTITY = ("id", "created_at", "max_output_tokens")
_WITHOUT_NEWS = ("response.content_part.done", "response.output_item.done", "keepalive")


class _Kind(msgspec.Struct):
    """An output item or a content part."""

    type: str = ""
    id: str = ""


class ResponsesEvent(msgspec.Struct):
    """One event, with the members that its type has; those that are absent are empty, or ``None``."""

    type: str
    sequence_number: int | None = None
    response: dict[str, msgspec.Raw] | None = None
    item: _Kind | None = None
    part: _Kind | None = None
    delta: msgspec.Raw = ABSENT
    item_id: str = ""
    output_index: int | None = None
    content_index: int | None = None


read_event = msgspec.json.Decoder(ResponsesEvent).decode


class ResponsesTranscript(Transcript):
    """The events of a response.

    Attributes:
        beginnings: which of ``BEGINNINGS`` were delivered.
        identity: members of the response that a continuation must not change, as the client has received them.
        item_id: of the message; empty before.
        has_part: whether the text of the message was begun.
        place: the members of its events that say to which text they belong. llama.cpp has only one of them.
        sequence_number: of the last event; ``None`` if the engine does not number them.
    """

    __slots__ = ("beginnings", "has_part", "identity", "item_id", "place", "sequence_number")

    def __init__(self) -> None:
        super().__init__()
        self.beginnings: set[str] = set()
        self.identity: dict[str, object] = {}
        self.item_id = ""
        self.has_part = False
        self.place: dict[str, object] = {}
        self.sequence_number: int | None = None

    @property
    def is_message(self) -> bool:
        """See :class:`Transcript`."""
        return True

    def _read(self, data: bytes) -> None:
        event = read_event(data)
        if event.sequence_number is not None:
            self.sequence_number = event.sequence_number
        match event.type:
            case "response.created" | "response.in_progress" | "response.queued":
                self.beginnings.add(event.type)
                members = event.response or {}
                # A copy, because a raw value refers to the whole block that it was read from.
                self.identity = {name: msgspec.Raw(bytes(members[name])) for name in _IDENTITY if name in members}
            case "response.output_item.added":
                self._begin_item(event)
            case "response.content_part.added":
                self._begin_part(event)
            case "response.output_text.delta":
                if text := msgspec.json.decode(event.delta, type=str):
                    self._add(text)
            case "response.output_text.done":
                self.finish_reason = "stop"
            case "response.completed" | "response.incomplete":
                self.finish_reason = self.finish_reason or "stop"
                self.has_usage = self.is_done = True
            case kind if kind not in _WITHOUT_NEWS:
                self.problem = _problem_of(kind.removeprefix("response."))

    def _begin_item(self, event: ResponsesEvent) -> None:
        item = event.item
        if item is None or item.type != "message":
            self.problem = _problem_of("" if item is None else item.type)
        elif self.item_id:
            self.problem = "unknown_events"  # a second message
        else:
            self.item_id = item.id
            self.place = {"item_id": item.id}
            if event.output_index is not None:
                self.place["output_index"] = event.output_index

    def _begin_part(self, event: ResponsesEvent) -> None:
        if event.part is None or event.part.type != "output_text" or self.has_part:
            self.problem = "unknown_events"
            return
        self.has_part = True
        if event.content_index is not None:
            self.place["content_index"] = event.content_index


def _problem_of(kind: str) -> str:
    if kind.startswith("reasoning"):
        return "reasoning"
    return "tool_calls" if "_call" in kind else "unknown_events"
