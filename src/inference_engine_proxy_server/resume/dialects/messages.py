"""Anthropic's messages.

Sources: Anthropic's reference of streaming messages, read November 2026: the last message may be the beginning of the
answer; clients add text to a block by its index. llama.cpp ``tools/server/server-chat.cpp`` and ``server-task.cpp``
(build 11549): a request is converted to a chat completion, which continues a trailing assistant message; a continuation
that has no text of its own still stops the text block. vLLM ``vllm/entrypoints/anthropic/serving.py`` (0.32) begins a
new answer instead.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import Api
from inference_engine_proxy_server.resume.dialect import Dialect, RequestRules
from inference_engine_proxy_server.resume.events import MALFORMED, data_of, name_of, named_event_of
from inference_engine_proxy_server.resume.members import Members, largest, reduced, value
from inference_engine_proxy_server.resume.seam import Seam
from inference_engine_proxy_server.resume.transcript import Transcript

__all__ = ["Messages", "MessagesSeam", "MessagesTranscript"]

_TEXT = "text"
_PROBLEMS = {
    "thinking": "reasoning", "redacted_thinking": "reasoning", "thinking_delta": "reasoning",
    "signature_delta": "reasoning", "tool_use": "tool_calls", "input_json_delta": "tool_calls",
}  # fmt: skip
_ABOUT_REQUEST = frozenset({
    "authentication_error", "billing_error", "exceed_context_size_error", "invalid_request_error", "not_found_error",
    "permission_error", "request_too_large",
})  # fmt: skip

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Piece(msgspec.Struct):
    """A content block, or what an event adds to one or to the message."""

    type: str = ""
    text: str = ""
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    usage: dict[str, msgspec.Raw] = {}


class _Event(msgspec.Struct):
    """One event, with the members that its type has."""

    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _Piece | None = None
    delta: _Piece | None = None


_read_event = msgspec.json.Decoder(_Event).decode


class MessagesTranscript(Transcript):
    """The events of a message.

    Attributes:
        has_begun: whether ``message_start`` was delivered.
        blocks: how many content blocks were begun.
        is_block_open: whether the last one has not been stopped.
        prompt_usage: counts of the prompt, as the client has received them.
    """

    __slots__ = ("blocks", "has_begun", "is_block_open", "prompt_usage")

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = False
        self.blocks = 0
        self.is_block_open = False
        self.prompt_usage: dict[str, object] = {}

    @property
    def is_message(self) -> bool:
        """See :class:`Transcript`."""
        return True

    def _read(self, data: bytes) -> None:
        event = _read_event(data)
        match event.type:
            case "message_start":
                self.has_begun = True
                usage = event.message.usage if event.message is not None else {}
                # A copy, because a raw value refers to the whole block that it was read from.
                self.prompt_usage = {
                    name: msgspec.Raw(bytes(count)) for name, count in usage.items() if name.endswith("input_tokens")
                }
            case "content_block_start":
                self.blocks = max(self.blocks, event.index + 1)
                self.is_block_open = True
                self._read_piece(event.content_block)
            case "content_block_delta":
                self._read_piece(event.delta)
            case "content_block_stop":
                self.is_block_open = False
            case "message_delta":
                self.finish_reason = event.delta.stop_reason if event.delta is not None else None
                self.has_usage = True
            case "message_stop":
                self.is_done = True
            case "ping":
                pass
            case _:
                self.problem = "unknown_events"

    def _read_piece(self, piece: _Piece | None) -> None:
        if piece is None or piece.type not in (_TEXT, "text_delta"):
            self.problem = _PROBLEMS.get(piece.type if piece is not None else "", "unknown_events")
        elif piece.text:
            self._add(piece.text)


class MessagesSeam(Seam):
    """As :class:`Seam`. The first text of the continuation continues the open content block; further blocks follow."""

    def __init__(self, transcript: MessagesTranscript, seconds: float) -> None:
        super().__init__(transcript, seconds)
        self._has_begun = transcript.has_begun
        self._prompt_usage = transcript.prompt_usage
        self._open = transcript.blocks - 1 if transcript.is_block_open else None  # index of a block to continue or stop
        self._blocks = transcript.blocks
        self._indexes: dict[int, int] = {}  # of the stream, by those of the continuation, for blocks that are open

    def rewrite(self, event: bytes) -> bytes:
        """See :meth:`Seam.rewrite`."""
        data = data_of(event)
        if data is None:
            return event
        found, members = _read_event(data), dict[str, Any](_members(data))
        match found.type:
            case "message_start":
                return b"" if self._has_begun else event
            case "content_block_start":
                return self._start(found, members)
            case "content_block_delta":
                return self._add(found, members)
            case "content_block_stop":
                return self._stop(found.index)
            case "message_delta":
                if "usage" in members:
                    members["usage"] = self._whole_usage(members["usage"])
                return self._stop_open() + named_event_of(members)
            case _:
                return event

    def _start(self, found: _Event, members: dict[str, Any]) -> bytes:
        index, block = found.index, found.content_block
        if block is not None and _PROBLEMS.get(block.type) == "reasoning":
            self._refuse_reasoning()
        if index in self._indexes:
            return b""  # llama.cpp repeats it if the last event has text
        if block is not None and block.type == _TEXT and self._open is not None:
            self._indexes[index] = self._open
            if not block.text:
                return b""
            delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": block.text}}
            return self._add(found, delta)
        is_joined = self._open in self._indexes.values()  # then the continuation itself stops it
        stop = b"" if is_joined else self._stop_open()
        self._indexes[index] = self._blocks
        self._blocks += 1
        return stop + named_event_of({**members, "index": self._indexes[index]})

    def _add(self, found: _Event, members: dict[str, Any]) -> bytes:
        delta = found.delta or found.content_block
        members["index"] = self._indexes.setdefault(found.index, found.index if self._open is None else self._open)
        if delta is not None and delta.text:
            text = self._without_echo(delta.text)
            if not text:
                return b""
            members["delta"] = {"type": "text_delta", "text": text}
        return named_event_of(members)

    def _stop(self, index: int) -> bytes:
        stopped = self._indexes.pop(index, None)
        if stopped is None:
            return b""  # of a block that the continuation has not begun
        if stopped == self._open:
            self._open = None
        return _stop_of(stopped)

    def _stop_open(self) -> bytes:
        """Stop the block that was open at the seam, unless the continuation has done so."""
        index, self._open = self._open, None
        return b"" if index is None else _stop_of(index)

    def _whole_usage(self, usage: msgspec.Raw) -> dict[str, object]:
        counts: dict[str, Any] = msgspec.json.decode(usage, type=dict[str, Any])
        counts["output_tokens"] = (counts.get("output_tokens") or 0) + self._tokens
        # The prompt of the continuation has the delivered text, too.
        return counts | {name: count for name, count in self._prompt_usage.items() if name in counts}


def _stop_of(index: int) -> bytes:
    return named_event_of({"type": "content_block_stop", "index": index})


def _must_call_tool(members: Members) -> bool:
    choice = value(members, "tool_choice")
    return choice is not None and not (isinstance(choice, dict) and choice.get("type") in ("auto", "none"))


def _is_structured(members: Members) -> bool:
    config = value(members, "output_config")
    return bool(value(members, "output_format")) or (isinstance(config, dict) and bool(config.get("format")))


def _has_no_messages(members: Members) -> bool:
    return not isinstance(value(members, "messages"), list)


def _continues_a_message(members: Members) -> bool:
    last = (value(members, "messages") or [None])[-1]
    return isinstance(last, dict) and last.get("role") == "assistant"


class Messages(Dialect[MessagesTranscript]):
    """``/v1/messages``."""

    api = Api.MESSAGES
    paths = ("/v1/messages",)
    limits = ("max_tokens",)
    stops = "stop_sequences"
    rules: ClassVar[RequestRules] = {
        "structured_output": _is_structured,
        "tool_choice": _must_call_tool,
        "prompt_form": _has_no_messages,
        "assistant_message": _continues_a_message,
    }

    def transcript(self) -> MessagesTranscript:
        """See :meth:`Dialect.transcript`."""
        return MessagesTranscript()

    def seam(self, transcript: MessagesTranscript, seconds: float) -> MessagesSeam:
        """See :meth:`Dialect.seam`."""
        return MessagesSeam(transcript, seconds)

    def continued(self, members: Members, transcript: MessagesTranscript) -> bytes:
        """See :meth:`Dialect.continued`: the text becomes an assistant message."""
        text = transcript.text
        if not text:
            return msgspec.json.encode(members)
        body = reduced(members, self.limits, transcript.text_events)
        messages = msgspec.json.decode(members["messages"], type=list[msgspec.Raw])
        body["messages"] = [*messages, {"role": "assistant", "content": text}]
        return msgspec.json.encode(body)

    def ending(self, members: Members, transcript: MessagesTranscript) -> bytes:
        """See :meth:`Dialect.ending`.

        An answer without a stop reason has used its token limit, because each event has at least one token. So the
        usage is exact.
        """
        last = b""
        if transcript.finish_reason is None:
            if transcript.is_block_open:
                last += _stop_of(transcript.blocks - 1)
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            usage = {"output_tokens": largest(members, self.limits)}
            last += named_event_of({"type": "message_delta", "delta": delta, "usage": usage})
        return last if transcript.is_done else last + named_event_of({"type": "message_stop"})

    def is_failure(self, event: bytes) -> bool:
        """See :meth:`Dialect.is_failure`. llama.cpp sends its error without Anthropic's ``{"type": "error"}``."""
        data = data_of(event)
        if data is None:
            return False
        try:
            found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        except MALFORMED:
            return False
        if name_of(event) != b"error" and found.get("type") != "error":
            return False
        error = found.get("error") or found
        return not (isinstance(error, dict) and error.get("type") in _ABOUT_REQUEST)
