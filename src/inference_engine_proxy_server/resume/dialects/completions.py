"""OpenAI's chat completions and text completions.

Sources: vLLM, ``ChatCompletionRequest`` (``continue_final_message`` and ``add_generation_prompt`` must be set
together). llama.cpp continues a trailing assistant message in any case; some builds repeat its text in the first event,
which the seam removes.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import Api
from inference_engine_proxy_server.resume.counts import UsageNames, whole_timings, whole_usage
from inference_engine_proxy_server.resume.dialect import Dialect, RequestRules
from inference_engine_proxy_server.resume.events import ABSENT, MALFORMED, data_of, event_of, is_about_request
from inference_engine_proxy_server.resume.members import Members, has, number, reduced, value
from inference_engine_proxy_server.resume.rules import has_grammar, has_penalty, hides_reasoning, must_call_tool
from inference_engine_proxy_server.resume.seam import Seam
from inference_engine_proxy_server.resume.transcript import Transcript

__all__ = ["Completions", "CompletionsSeam", "CompletionsTranscript", "is_done"]

_DONE = b"data: [DONE]\n\n"
_ABORTED = "abort"  # vLLM's finish reason when it is shut down
_NOTHING = (b"null", b'""', b"[]")
_REASONING = frozenset({"reasoning", "reasoning_content"})
_TOOL_CALLS = frozenset({"tool_calls", "function_call"})
_IDENTITY = ("id", "created", "model", "object", "system_fingerprint")
_USAGE = UsageNames("prompt_tokens", "completion_tokens", "prompt_tokens_details")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_text = msgspec.json.Decoder(str | None).decode
_NULL = msgspec.Raw(b"null")
_EMPTY = (b"", b"null", b"[]")


class _Choice(msgspec.Struct):
    """One choice of an event: ``text`` of a text completion, or the new members of a chat's message in ``delta``."""

    index: int = 0
    finish_reason: str | None = None
    text: str | None = None
    delta: dict[str, msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    """One event; members that are absent are empty, or ``None``."""

    choices: list[_Choice] | None = None
    id: msgspec.Raw = ABSENT
    created: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT
    object: msgspec.Raw = ABSENT
    system_fingerprint: msgspec.Raw = ABSENT
    usage: dict[str, msgspec.Raw] | None = None
    timings: dict[str, msgspec.Raw] | None = None
    error: msgspec.Raw = ABSENT


_read_event = msgspec.json.Decoder(_Event).decode


class CompletionsTranscript(Transcript):
    """The events of a completion.

    Attributes:
        identity: the members that all events of the stream share, as the client has received them.
        role_sent: whether the role of the message was delivered.
    """

    __slots__ = ("identity", "role_sent")

    def __init__(self) -> None:
        super().__init__()
        self.identity: dict[str, msgspec.Raw] = {}
        self.role_sent = False

    @property
    def is_message(self) -> bool:
        """Whether the events are those of a chat completion."""
        return b"chat" in bytes(self.identity.get("object", b""))

    def _read(self, data: bytes) -> None:
        if is_done(data):
            self.is_done = True
            return
        event = _read_event(data)
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

    def _read_choice(self, choice: _Choice) -> None:
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
            self._add(text)


class CompletionsSeam(Seam):
    """As :class:`Seam`. The role is not repeated."""

    def __init__(self, transcript: CompletionsTranscript, seconds: float) -> None:
        super().__init__(transcript, seconds)
        self._identity = dict(transcript.identity)
        self._drops_role = transcript.role_sent

    def rewrite(self, event: bytes) -> bytes:
        """See :meth:`Seam.rewrite`."""
        data = data_of(event)
        if data is None or is_done(data):
            return event
        members = _members(data)
        if "choices" not in members:
            return event
        choices = [self._continued(choice) for choice in _choices(members["choices"])]
        left = [choice for choice in choices if choice is not None]
        usage, timings = members.get("usage", _NULL), members.get("timings", _NULL)
        if not left and choices and bytes(usage) in _EMPTY and bytes(timings) in _EMPTY:
            return b""
        rewritten: dict[str, object] = {name: self._identity.get(name, raw) for name, raw in members.items()}
        rewritten["choices"] = left
        if bytes(usage) not in _EMPTY:
            rewritten["usage"] = whole_usage(usage, self._tokens, _USAGE)
        if bytes(timings) not in _EMPTY:
            rewritten["timings"] = whole_timings(timings, self._tokens, self._milliseconds)
        return event_of(rewritten)

    def _continued(self, choice: dict[str, msgspec.Raw]) -> dict[str, object] | None:
        """The choice without what the client has; ``None`` if nothing is left."""
        rewritten: dict[str, object] = dict(choice)
        has_news = bytes(choice.get("finish_reason", _NULL)) != b"null"
        if "text" in choice:
            return rewritten if has_news or _text(choice["text"]) else None  # no engine repeats the prompt here
        delta: dict[str, object] = dict(_members(choice["delta"])) if "delta" in choice else {}
        if any(bytes(delta[name]) not in _NOTHING for name in _REASONING & delta.keys()):  # type: ignore[call-overload]
            self._refuse_reasoning()
        if self._drops_role:
            delta.pop("role", None)
        if "content" in delta:
            text = self._without_echo(_text(delta.pop("content")))  # type: ignore[arg-type]
            if text or not self._drops_role:
                delta["content"] = text
        rewritten["delta"] = delta
        return rewritten if has_news or delta else None


def _is_structured(members: Members) -> bool:
    wanted = value(members, "response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    return kind not in (None, "text") or has_grammar(members)


def _asks_for_several(members: Members) -> bool:
    counts = [value(members, name) for name in ("n", "best_of")]
    return any(isinstance(count, int | float) and count > 1 for count in counts)


def _is_not_text(members: Members) -> bool:
    return "messages" not in members and not isinstance(value(members, "prompt"), str)


def _continues_a_message(members: Members) -> bool:
    messages = value(members, "messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return (isinstance(last, dict) and last.get("role") == "assistant") or has("continue_final_message")(members)


class Completions(Dialect[CompletionsTranscript]):
    """``/v1/chat/completions`` and ``/v1/completions``."""

    api = Api.COMPLETIONS
    paths = ("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions")
    limits = ("max_tokens", "max_completion_tokens", "n_predict")
    rules: ClassVar[RequestRules] = {
        "several_answers": _asks_for_several,
        "logprobs": has(
            "logprobs", "top_logprobs", "prompt_logprobs", "n_probs", "return_token_ids", "return_tokens_as_token_ids"
        ),
        "structured_output": _is_structured,
        "tool_choice": must_call_tool,
        "echo": has("echo", "suffix"),
        "penalties": has_penalty,
        "prompt_form": _is_not_text,
        "assistant_message": _continues_a_message,
        "hidden_reasoning": hides_reasoning,
    }

    def wants_usage(self, members: Members) -> bool:
        """Whether the client wants the usage at the end of the stream."""
        options = value(members, "stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))

    def transcript(self) -> CompletionsTranscript:
        """See :meth:`Dialect.transcript`."""
        return CompletionsTranscript()

    def seam(self, transcript: CompletionsTranscript, seconds: float) -> CompletionsSeam:
        """See :meth:`Dialect.seam`."""
        return CompletionsSeam(transcript, seconds)

    def continued(self, members: Members, transcript: CompletionsTranscript) -> bytes:
        """See :meth:`Dialect.continued`: the text becomes an assistant message, or the end of the prompt."""
        text = transcript.text
        if not text:
            return msgspec.json.encode(members)
        delivered = transcript.text_events
        body = reduced(members, self.limits, delivered)
        if (least := number(members, "min_tokens")) is not None:
            body["min_tokens"] = max(0, least - delivered)
        if "messages" in members:
            messages = msgspec.json.decode(members["messages"], type=list[msgspec.Raw])
            body["messages"] = [*messages, {"role": "assistant", "content": text}]
            body["continue_final_message"] = True
            body["add_generation_prompt"] = False
        else:
            body["prompt"] = msgspec.json.decode(members["prompt"], type=str) + text
        return msgspec.json.encode(body)

    def ending(self, members: Members, transcript: CompletionsTranscript) -> bytes:
        """See :meth:`Dialect.ending`: the finish reason ``length``, and ``[DONE]``."""
        del members
        last = b""
        if transcript.finish_reason is None:
            nothing: dict[str, object] = {"delta": {}} if transcript.is_message else {"text": ""}
            choice = {"index": 0, "finish_reason": "length", **nothing}
            last = event_of({**transcript.identity, "choices": [choice]})
        return last if transcript.is_done else last + _DONE

    def is_failure(self, event: bytes) -> bool:
        """See :meth:`Dialect.is_failure`: an error, or vLLM's finish reason ``abort``."""
        data = data_of(event)
        if data is None or is_done(data):
            return False
        try:
            found = _read_event(data)
        except MALFORMED:
            return False
        if any(choice.finish_reason == _ABORTED for choice in found.choices or ()):
            return True
        return bytes(found.error) not in (b"", b"null") and not is_about_request(found.error)


def is_done(data: bytes) -> bool:
    return data.strip() == b"[DONE]"


def _problem_of(member: str) -> str:
    if member in _REASONING:
        return "reasoning"
    return "tool_calls" if member in _TOOL_CALLS else "unknown_events"
