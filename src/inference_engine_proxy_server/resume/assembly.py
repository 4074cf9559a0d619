"""Assembles the JSON reply to a request without ``stream`` from the events of llama.cpp's stream.

The reply equals the one that the engine would have given without a stream, byte for byte apart from ids and times: the
texts are those of the events as they were encoded, and the members have llama.cpp's order.

A stream does not always show what the reply would be. The assembly then has a :data:`doubt <DOUBTS>`. One case cannot
be seen: a chat answer that the model itself ends inside a character, where the reply has U+FFFD at the end.

Source: llama.cpp build 11549, ``tools/server/server-task.cpp`` (``to_json_oaicompat*``) and ``server-context.cpp``
(``process_token``).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inference_engine_proxy_server.resume.dialects.completions import is_done
from inference_engine_proxy_server.resume.events import ABSENT, MALFORMED, data_of, split_events

__all__ = ["DOUBTS", "RESULTS", "Assembly"]

_READ_BYTES = 16 * 1024  # of events that are kept as they came, because reading each event at once would cost more
_MOST_BYTES = 16 * 1024 * 1024  # of text; a million tokens have 4 to 5 MiB
_IDENTITY = ("created", "id", "model", "system_fingerprint")

DOUBTS: Mapping[str, str] = {
    "unknown_members": "An event has a member, or lacks one, that the proxy does not expect.",
    "cut_end": "The stream lacks what llama.cpp withholds at its end: part of a character, or of a stop string.",
    "empty_message": "Tokens were generated, but the message is empty; the reply would have their text.",
    "long_answer": "The answer is longer than the proxy keeps.",
}
"""Why the events of a whole stream may not show what the reply would be."""

RESULTS = ("assembled", *DOUBTS, "broken")
"""What may come of a reply: assembled; or the request was sent again, because of a doubt or a broken stream."""


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: msgspec.Raw = ABSENT
    arguments: msgspec.Raw = ABSENT


class _CallDelta(msgspec.Struct, forbid_unknown_fields=True):
    index: int
    id: msgspec.Raw = ABSENT
    type: msgspec.Raw = ABSENT
    function: _Function | None = None


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    role: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    reasoning_content: msgspec.Raw = ABSENT
    tool_calls: list[_CallDelta] | None = None


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    finish_reason: str | None
    index: int
    delta: _Delta | None = None
    text: msgspec.Raw = ABSENT
    logprobs: None = None


class _Event(msgspec.Struct, forbid_unknown_fields=True):
    choices: list[_Choice]
    created: msgspec.Raw
    id: msgspec.Raw
    model: msgspec.Raw
    system_fingerprint: msgspec.Raw
    object: str
    usage: msgspec.Raw = ABSENT
    timings: msgspec.Raw = ABSENT


class _Failure(msgspec.Struct):
    error: msgspec.Raw


class _Counts(msgspec.Struct):
    completion_tokens: int = 0  # of a usage
    predicted_n: int = 0  # of timings


_decode = msgspec.json.Decoder(_Event).decode
_decode_failure = msgspec.json.Decoder(_Failure).decode
_decode_counts = msgspec.json.Decoder(_Counts).decode


class _Call:
    """A tool call. Like all texts here, its parts are encoded as in JSON, without their quotes."""

    __slots__ = ("_arguments", "_id", "_name")

    def __init__(self) -> None:
        self._id = self._name = b""
        self._arguments: list[bytes] = []

    def take(self, delta: _CallDelta) -> int:
        """Add what is new; returns its length in bytes."""
        function = delta.function or _Function()
        call_id, name, arguments = _text(delta.id), _text(function.name), _text(function.arguments)
        self._id, self._name = call_id or self._id, name or self._name  # a name that has grown is sent again as a whole
        self._arguments.append(arguments)
        return len(call_id) + len(name) + len(arguments)

    def encoded(self) -> bytes:
        """The call as an item of ``tool_calls``."""
        identity = b',"id":"%b"' % self._id if self._id else b""
        function = b'{"name":"%b","arguments":"%b"}' % (self._name, b"".join(self._arguments))
        return b'{"type":"function","function":%b%b}' % (function, identity)


class Assembly:
    """The reply as far as its events have come.

    Attributes:
        has_events: at least one event was taken.
        failure: the event's data with which the engine reports an error; empty without one.
        doubt: why the reply may differ, see :data:`DOUBTS`; ``None`` as long as nothing speaks for it.
    """

    __slots__ = (
        "_calls", "_content", "_finish_reason", "_identity", "_is_chat", "_is_done", "_latest_timings", "_reasoning",
        "_text_bytes", "_text_timings", "_timings", "_unread", "_unread_bytes", "_usage", "doubt", "failure",
        "has_events",
    )  # fmt: skip

    def __init__(self) -> None:
        self.has_events = False
        self.failure = b""
        self.doubt: str | None = None
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._content: list[bytes] = []
        self._reasoning: list[bytes] = []
        self._calls: dict[int, _Call] = {}
        self._text_bytes = 0
        self._latest_timings = self._text_timings = b""  # with the latest token, and with the latest one that has text
        self._finish_reason: str | None = None
        # of the final event
        self._is_done = self._is_chat = False
        self._identity: dict[str, bytes] = {}
        self._usage = self._timings = b""

    def __repr__(self) -> str:
        return f"<Assembly {self._text_bytes} bytes of text, {self._unread_bytes} not read yet, {self._finish_reason}>"

    def take(self, events: bytes) -> None:
        """Add the next bytes of the stream."""
        self.has_events = True
        self._unread.append(events)
        self._unread_bytes += len(events)
        if self._unread_bytes > _READ_BYTES:
            self._read()

    def take_chunk(self, chunk: bytes) -> None:
        """Add the next bytes of the stream, which are one whole chunk with its framing."""
        self.take(chunk[chunk.find(b"\n") + 1 : -2])

    def finish(self) -> bytes | None:
        """The body of the reply; ``None`` if the stream is not complete, has failed, or leaves a doubt."""
        self._read()
        if self._finish_reason is None or not self._usage or not self._is_done:
            return None
        self.doubt = self.doubt or self._doubt_about_text(self._finish_reason)
        return self._body(self._finish_reason) if self.doubt is None else None

    # --- events

    def _read(self) -> None:
        """Read the events that were added since the last call."""
        events, rest = split_events(b"".join(self._unread))
        self._unread = [rest] if rest else []
        self._unread_bytes = len(rest)
        for event in events:
            data = data_of(event)
            if data is None:
                continue
            if is_done(data):
                self._is_done = True
            elif self.doubt is None:
                self._read_event(data)
        if self._text_bytes + self._unread_bytes > _MOST_BYTES:
            self.doubt = "long_answer"
            self._unread, self._content, self._reasoning, self._calls = [], [], [], {}

    def _read_event(self, data: bytes) -> None:
        text_bytes = self._text_bytes
        try:
            event = _decode(data)
            for choice in event.choices:
                self._read_choice(choice)
        except MALFORMED:
            self._read_failure(data)
            return
        if event.usage:
            self._is_chat = event.object == "chat.completion.chunk"
            # Copies, because a raw value refers to the whole block that it was read from.
            self._identity = {name: bytes(getattr(event, name)) for name in _IDENTITY}
            self._usage, self._timings = bytes(event.usage), bytes(event.timings)
        elif event.timings and self._finish_reason is None:
            self._latest_timings = bytes(event.timings)
            if self._text_bytes > text_bytes:
                self._text_timings = self._latest_timings

    def _read_choice(self, choice: _Choice) -> None:
        if choice.index:
            raise msgspec.ValidationError("several answers")
        self._finish_reason = choice.finish_reason or self._finish_reason
        self._add(self._content, choice.text)
        delta = choice.delta
        if delta is not None:
            self._add(self._content, delta.content)
            self._add(self._reasoning, delta.reasoning_content)
            for call in delta.tool_calls or ():
                self._text_bytes += self._calls.setdefault(call.index, _Call()).take(call)

    def _add(self, texts: list[bytes], raw: msgspec.Raw) -> None:
        text = _text(raw)
        if text:
            texts.append(text)
            self._text_bytes += len(text)

    def _read_failure(self, data: bytes) -> None:
        try:
            _decode_failure(data)
        except MALFORMED:
            self.doubt = "unknown_members"
        else:
            self.failure = data

    # --- the reply

    def _doubt_about_text(self, finish_reason: str) -> str | None:
        tokens = _tokens(self._timings or self._usage)
        if not self._text_bytes and self._is_chat and tokens > (finish_reason != "length"):  # one token: the end
            return "empty_message"
        shown = tokens
        if finish_reason == "length":
            shown = _tokens(self._text_timings)
        elif not self._is_chat:  # of a chat, the last token of an answer is not shown
            shown = _tokens(self._latest_timings)
        return "cut_end" if shown < tokens else None

    def _body(self, finish_reason: str) -> bytes:
        content, reason, identity = b"".join(self._content), finish_reason.encode(), self._identity
        if self._is_chat:
            choice = b'{"finish_reason":"%b","index":0,"message":%b}' % (reason, self._message(content))
        else:
            choice = b'{"text":"%b","index":0,"logprobs":null,"finish_reason":"%b"}' % (content, reason)
        return (
            b'{"choices":[%b],"created":%b,"model":%b,"system_fingerprint":%b,"object":"%b","usage":%b,"id":%b%b}'
            % (
                choice,
                identity["created"],
                identity["model"],
                identity["system_fingerprint"],
                b"chat.completion" if self._is_chat else b"text_completion",
                self._usage,
                identity["id"],
                b',"timings":' + self._timings if self._timings else b"",
            )
        )

    def _message(self, content: bytes) -> bytes:
        reasoning = b',"reasoning_content":"%b"' % b"".join(self._reasoning) if self._reasoning else b""
        calls = b",".join(self._calls[index].encoded() for index in sorted(self._calls))
        tool_calls = b',"tool_calls":[%b]' % calls if calls else b""
        return b'{"role":"assistant","content":"%b"%b%b}' % (content, reasoning, tool_calls)


def _text(raw: msgspec.Raw) -> bytes:
    """The encoded text of a JSON string without its quotes; empty if it is absent or null.

    Raises:
        msgspec.ValidationError: it is something else.
    """
    text = bytes(raw)
    if text.startswith(b'"'):
        return text[1:-1]
    if text not in (b"", b"null"):
        raise msgspec.ValidationError("not a text")
    return b""


def _tokens(counts: bytes) -> int:
    """The tokens of the answer in a usage or in timings; 0 if there are none."""
    found = _decode_counts(counts) if counts else _Counts()
    return found.predicted_n or found.completion_tokens
