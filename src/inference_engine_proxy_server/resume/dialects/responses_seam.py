"""Rewrites the events of a response that continues another one."""

from __future__ import annotations

from typing import Any

import msgspec

from inference_engine_proxy_server.resume.counts import UsageNames, whole_timings, whole_usage
from inference_engine_proxy_server.resume.dialects.responses_transcript import (
    BEGINNINGS,
    ENDINGS,
    ResponsesEvent,
    ResponsesTranscript,
    read_event,
)
from inference_engine_proxy_server.resume.events import data_of, named_event_of
from inference_engine_proxy_server.resume.seam import Seam

__all__ = ["ResponsesSeam"]

_USAGE = UsageNames("input_tokens", "output_tokens", "input_tokens_details")
_DELTA, _TEXT_DONE = "response.output_text.delta", "response.output_text.done"
_PART_ADDED, _PART_DONE = "response.content_part.added", "response.content_part.done"
_ABOUT_TEXT = (_DELTA, _TEXT_DONE, _PART_ADDED, _PART_DONE)
_ITEM_ADDED, _ITEM_DONE = "response.output_item.added", "response.output_item.done"

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[dict[str, Any]]).decode


class ResponsesSeam(Seam):
    """As :class:`Seam`. The first message of the continuation continues the delivered one.

    The delivered message is the first item of the output, because streams with other items are not continued.
    """

    def __init__(self, transcript: ResponsesTranscript, seconds: float) -> None:
        super().__init__(transcript, seconds)
        self._beginnings = set(transcript.beginnings)
        self._identity = transcript.identity
        self._item_id = transcript.item_id
        self._has_part = transcript.has_part
        self._place = dict(transcript.place)
        self._sequence_number = transcript.sequence_number
        self._text = [transcript.text]
        self._is_joined = False  # the continuation has begun a message, which continues the delivered one
        self._is_closed = not transcript.item_id  # the delivered message has ended, or there is none
        self._other_items: set[str] = set()  # messages that are items of their own

    def rewrite(self, event: bytes) -> bytes:
        """See :meth:`Seam.rewrite`."""
        data = data_of(event)
        if data is None:
            return event
        found, members = read_event(data), dict[str, Any](_members(data))
        if "timings" in members:
            members["timings"] = whole_timings(members["timings"], self._tokens, self._milliseconds)
        if found.type in BEGINNINGS:
            if found.type in self._beginnings:
                return b""
            response = {**(found.response or {}), **self._identity}
            return self._numbered({**members, "response": response})
        if found.type in ENDINGS:
            closing = self._close()
            members["response"] = self._whole_response(members["response"])
            return closing + self._numbered(members)
        if not self._item_id:
            return self._numbered(members)  # nothing was delivered that the answer could continue
        if found.type == _ITEM_ADDED:
            return self._begin_item(found, members)
        if self._is_ours(found):
            return self._rewrite_text(found.type, members)
        return self._numbered(self._moved(members))

    def _begin_item(self, found: ResponsesEvent, members: dict[str, Any]) -> bytes:
        if found.item is not None and found.item.type == "reasoning":
            self._refuse_reasoning()
        is_message = found.item is not None and found.item.type == "message"
        if is_message and not self._is_joined and not self._is_closed:
            self._is_joined = True
            return b""
        if is_message and found.item is not None:
            self._other_items.add(found.item.id)
        return self._close() + self._numbered(self._moved(members))

    def _is_ours(self, found: ResponsesEvent) -> bool:
        """Whether the event is about the message that was delivered; llama.cpp does not begin it again without text."""
        if found.type in _ABOUT_TEXT:
            return found.item_id not in self._other_items
        return (
            found.type == _ITEM_DONE and found.item is not None and self._is_our_message(found.item.type, found.item.id)
        )

    def _is_our_message(self, kind: object, item_id: object) -> bool:
        return kind == "message" and item_id not in self._other_items

    def _rewrite_text(self, kind: str, members: dict[str, Any]) -> bytes:
        """An event about the delivered message. The ends of its text, its part and the item follow each other."""
        if kind == _PART_ADDED:
            if self._has_part:
                return b""
            if "content_index" in members:
                self._place["content_index"] = members["content_index"]
            return self._numbered({**members, **self._place})
        if kind == _DELTA:
            text = self._without_echo(msgspec.json.decode(members["delta"], type=str))
            if not text:
                return b""
            self._text.append(text)
            return self._numbered({**members, **self._place, "delta": text})
        return self._close()

    def _close(self) -> bytes:
        """The events that end the delivered message; empty if it has ended."""
        if self._is_closed:
            return b""
        self._is_closed = True
        message = self._message()
        [part] = message["content"]
        item = {name: value for name, value in self._place.items() if name == "output_index"} | {"item": message}
        ends = (
            {"type": _TEXT_DONE, **self._place, "text": part["text"], "logprobs": []},
            {"type": _PART_DONE, **self._place, "part": part},
            {"type": _ITEM_DONE, **item},
        )
        return b"".join(map(self._numbered, ends))

    def _message(self) -> dict[str, Any]:
        """The delivered message with its whole text."""
        part = {"type": "output_text", "text": "".join(self._text), "annotations": [], "logprobs": []}
        return {
            "id": self._item_id, "type": "message", "role": "assistant", "status": "completed", "content": [part],
        }  # fmt: skip

    def _moved(self, members: dict[str, Any]) -> dict[str, Any]:
        """An event about another item, which follows the delivered message."""
        if "output_index" in members and not self._is_joined:
            members["output_index"] = msgspec.json.decode(members["output_index"], type=int) + 1
        return members

    def _numbered(self, members: dict[str, Any]) -> bytes:
        if self._sequence_number is not None:
            self._sequence_number += 1
            members["sequence_number"] = self._sequence_number
        return named_event_of(members)

    def _whole_response(self, response: msgspec.Raw) -> dict[str, Any]:
        members: dict[str, Any] = {**_members(response), **self._identity}
        if "usage" in members and bytes(members["usage"]) != b"null":
            members["usage"] = whole_usage(members["usage"], self._tokens, _USAGE)
        if self._item_id:
            items = _items(members["output"]) if "output" in members else []
            others = [item for item in items if not self._is_our_message(item.get("type"), item.get("id"))]
            members["output"] = [self._message(), *others]
        return members
