"""Engines whose streams break in the ways in which real ones do, and a proxy in front of two of them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.http_client import Call
from support.live_proxy import Proxy, live_proxy

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
WORDS = ["one", " two", " three", " four", " five", " six"]
PROMPT_TOKENS = 8
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_LAST = b"0\r\n\r\n"


class Speech(ABC):
    """One answer in the format of an API.

    Args:
        port: of the engine, by which its ids differ from those of others.
        body: of the request.
        extra: further members of each piece of text.
    """

    def __init__(self, port: int, body: dict[str, Any], extra: dict[str, Any]) -> None:
        self._port = port
        self._extra = extra
        said = self.said(body)
        self.words = [word for at, word in enumerate(WORDS) if not said.startswith("".join(WORDS[: at + 1]))]
        self.prompt_tokens = PROMPT_TOKENS + len(WORDS) - len(self.words)

    @abstractmethod
    def said(self, body: dict[str, Any]) -> str:
        """The beginning of the answer that the request has."""

    @abstractmethod
    def beginning(self) -> list[bytes]:
        """Events before the first word."""

    @abstractmethod
    def word(self, word: str) -> bytes:
        """An event with text."""

    @abstractmethod
    def reason(self, tokens: int, reason: str = "stop") -> list[bytes]:
        """Events after the last word, up to the one that says why the answer ends."""

    @abstractmethod
    def last(self) -> list[bytes]:
        """Events after the reason."""

    @abstractmethod
    def error(self, code: int) -> list[bytes]:
        """Events that end a failed stream."""


class CompletionsSpeech(Speech):
    """As vLLM says it."""

    is_chat = False

    def said(self, body: dict[str, Any]) -> str:
        return "".join(body["prompt"])

    def beginning(self) -> list[bytes]:
        return []

    def word(self, word: str) -> bytes:
        return self._event({"text": word}, None)

    def reason(self, tokens: int, reason: str = "stop") -> list[bytes]:
        del tokens
        return [self._event({"text": ""}, reason)]

    def last(self) -> list[bytes]:
        return [b"data: [DONE]\n\n"]

    def error(self, code: int) -> list[bytes]:
        return [b'data: {"error": {"message": "EngineDeadError", "code": %d}}\n\n' % code, *self.last()]

    def _event(self, content: dict[str, Any], finish: str | None) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        head = {"id": f"cmpl-{self._port}", "object": kind, "created": 1, "model": "m"}
        choice = {"index": 0, "finish_reason": finish, **content}
        return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"


class ChatSpeech(CompletionsSpeech):
    """As vLLM says it."""

    is_chat = True

    def said(self, body: dict[str, Any]) -> str:
        return str(body["messages"][-1]["content"])

    def beginning(self) -> list[bytes]:
        return [self._event({"delta": {"role": "assistant", "content": ""}}, None)]

    def word(self, word: str) -> bytes:
        return self._event({"delta": {"content": word, **self._extra}}, None)

    def reason(self, tokens: int, reason: str = "stop") -> list[bytes]:
        del tokens
        return [self._event({"delta": {"content": ""} if reason == "abort" else {}}, reason)]


class MessagesSpeech(Speech):
    """As llama.cpp says it; an ``extra`` is the content block that it begins instead of a text block."""

    def said(self, body: dict[str, Any]) -> str:
        messages = body["messages"]
        return str(messages[-1]["content"]) if isinstance(messages, list) else ""

    def beginning(self) -> list[bytes]:
        usage = {"cache_read_input_tokens": 0, "input_tokens": self.prompt_tokens, "output_tokens": 0}
        message: dict[str, Any] = {
            "id": f"msg-{self._port}", "type": "message", "role": "assistant", "content": [], "model": "m",
            "stop_reason": None, "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        block = self._extra or {"type": "text", "text": ""}
        return [
            named("message_start", message=message),
            named("content_block_start", index=0, content_block=block),
        ]

    def word(self, word: str) -> bytes:
        return named("content_block_delta", index=0, delta={"type": "text_delta", "text": word})

    def reason(self, tokens: int, reason: str = "end_turn") -> list[bytes]:
        delta = {"stop_reason": "end_turn" if reason == "stop" else reason, "stop_sequence": None}
        return [
            named("content_block_stop", index=0),
            named("message_delta", delta=delta, usage={"output_tokens": tokens}),
        ]

    def last(self) -> list[bytes]:
        return [named("message_stop")]

    def error(self, code: int) -> list[bytes]:
        kind = "server_error" if code == 500 else "invalid_request_error"
        error = {"code": code, "message": "Compute error.", "type": kind}
        return [b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"]


class ResponsesSpeech(Speech):
    """As vLLM says it; an ``extra`` is the item that it begins instead of a message."""

    def __init__(self, port: int, body: dict[str, Any], extra: dict[str, Any]) -> None:
        super().__init__(port, body, extra)
        self._number = 0
        self._tokens = 0
        self._response: dict[str, Any] = {
            "id": f"resp-{port}", "object": "response", "created_at": port, "model": "m",
            "max_output_tokens": body.get("max_output_tokens"), "output": [], "status": "in_progress", "usage": None,
        }  # fmt: skip
        self._text = {"item_id": f"msg-{port}", "output_index": 0, "content_index": 0}

    def said(self, body: dict[str, Any]) -> str:
        last = body["input"][-1] if isinstance(body["input"], list) else {}
        content = last.get("content")
        return str(content[0]["text"]) if isinstance(content, list) else ""

    def beginning(self) -> list[bytes]:
        item = self._extra or {"type": "message", "id": f"msg-{self._port}", "role": "assistant", "content": []}
        return [
            self._event("response.created", response=self._response),
            self._event("response.in_progress", response=self._response),
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **self._text, part=self._part("")),
        ]

    def word(self, word: str) -> bytes:
        return self._event("response.output_text.delta", **self._text, delta=word, logprobs=[])

    def reason(self, tokens: int, reason: str = "stop") -> list[bytes]:
        del reason
        self._tokens = tokens
        part = self._part("".join(self.words[:tokens]))
        return [
            self._event("response.output_text.done", **self._text, text=part["text"], logprobs=[]),
            self._event("response.content_part.done", **self._text, part=part),
            self._event("response.output_item.done", output_index=0, item=self._message()),
        ]

    def last(self) -> list[bytes]:
        usage = {
            "input_tokens": self.prompt_tokens, "output_tokens": self._tokens,
            "total_tokens": self.prompt_tokens + self._tokens, "input_tokens_details": {"cached_tokens": 0},
        }  # fmt: skip
        whole = {**self._response, "status": "completed", "output": [self._message()], "usage": usage}
        return [self._event("response.completed", response=whole)]

    def error(self, code: int) -> list[bytes]:
        return [b'data: {"error": {"message": "Compute error.", "code": %d}}\n\n' % code]

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}

    def _message(self) -> dict[str, Any]:
        content = [self._part("".join(self.words[: self._tokens]))]
        return {"type": "message", "id": f"msg-{self._port}", "role": "assistant", "content": content}

    def _event(self, kind: str, **members: Any) -> bytes:
        self._number += 1
        return named(kind, sequence_number=self._number - 1, **members)


SPEECHES: dict[str, type[Speech]] = {
    CHAT: ChatSpeech, COMPLETIONS: CompletionsSpeech, MESSAGES: MessagesSpeech, RESPONSES: ResponsesSpeech,
}  # fmt: skip


def named(kind: str, **members: Any) -> bytes:
    """An event with its type as its name."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


Breaks = Callable[[Speech, EngineConnection], None]


@dataclass
class Plan:
    """What the next requests meet, on whatever engine.

    Attributes:
        steps: how each of the next streams breaks after three words; later ones do not break.
        extra: see :class:`Speech`.
        owner: the ``owned_by`` of the engine's model.
        prompt: the last one that the engine shows as vLLM does.
        bodies, requests: of the clients so far; the bodies as objects.
    """

    steps: list[Breaks]
    extra: dict[str, Any] = field(default_factory=dict)
    owner: str = "llamacpp"
    prompt: str = "<user>a<assistant>begun \n\n"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)


class Engine(FakeEngine):
    """A server that says WORDS, or what is left of them."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(self._serve)
        self._plan = plan

    async def _serve(self, connection: EngineConnection) -> None:
        while True:
            request = await connection.request()
            target = request.split(b" ", 2)[1].decode().partition("?")[0]
            if target == "/v1/models":
                models = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": self._plan.owner}]}
                connection.send(http_reply(json.dumps(models).encode()))
            elif target == "/apply-template":
                connection.send(http_reply(b'{"prompt": "<user>a<assistant>begun"}'))
            elif target in ("/tokenize", "/detokenize"):
                connection.send(http_reply(json.dumps({"tokens": [1], "prompt": self._plan.prompt}).encode()))
            elif request.startswith(b"GET"):
                connection.send(http_reply(b"", 200 if target == "/health" else 404))
            else:
                self._plan.requests.append(request)
                self._answer(connection, target, json.loads(request.partition(b"\r\n\r\n")[2]))

    def _answer(self, connection: EngineConnection, target: str, body: dict[str, Any]) -> None:
        self._plan.bodies.append(body)
        breaks = self._plan.steps.pop(0) if self._plan.steps else None
        if breaks is rejects:
            connection.send(http_reply(b'{"error":{}}', 400))
            return
        speech = SPEECHES[target](self.port, body, self._plan.extra)
        words = speech.words[: 1 if breaks in AFTER_ONE_WORD else 3 if breaks else None]
        connection.send(_HEAD, *framed(speech.beginning()), *framed(map(speech.word, words)))
        if breaks is not None:
            breaks(speech, connection)
            return
        connection.send(*framed([*speech.reason(len(words)), *speech.last()]), _LAST)


def framed(events: Any) -> list[bytes]:
    """Each event as a chunk."""
    return [b"%x\r\n%b\r\n" % (len(event), event) for event in events]


def closes(speech: Speech, connection: EngineConnection) -> None:
    del speech
    connection.finish()


def stalls(speech: Speech, connection: EngineConnection) -> None:
    """Sends nothing more, and leaves the connection open."""


def closes_after_one_word(speech: Speech, connection: EngineConnection) -> None:
    closes(speech, connection)


def reports_an_error_of_the_request(speech: Speech, connection: EngineConnection) -> None:
    connection.send(*framed(speech.error(400)), _LAST)


def finishes_one_word_without_an_end(speech: Speech, connection: EngineConnection) -> None:
    finishes_without_an_end(speech, connection)


def closes_after_a_blank_line(speech: Speech, connection: EngineConnection) -> None:
    connection.send(*framed([speech.word("\n\n")]))
    connection.finish()


AFTER_ONE_WORD = (closes_after_one_word, finishes_one_word_without_an_end)


def ends_without_a_finish(speech: Speech, connection: EngineConnection) -> None:
    del speech
    connection.send(_LAST)


def ends_inside_an_event(speech: Speech, connection: EngineConnection) -> None:
    connection.send(framed([speech.word("lost")])[0][:60])
    connection.finish()


def reports_an_error(speech: Speech, connection: EngineConnection) -> None:
    connection.send(*framed(speech.error(500)), _LAST)


def aborts(speech: Speech, connection: EngineConnection) -> None:
    connection.send(*framed([*speech.reason(3, "abort"), *speech.last()]), _LAST)


def finishes_without_an_end(speech: Speech, connection: EngineConnection) -> None:
    connection.send(*framed(speech.reason(3)))
    connection.finish()


def rejects(speech: Speech, connection: EngineConnection) -> None:
    """Answers 400, as an engine does that cannot continue a message."""


@asynccontextmanager
async def two_engines(
    *steps: Breaks, extra: dict[str, Any] | None = None, owner: str = "llamacpp", prompt: str = "", **settings: Any
) -> AsyncIterator[Fleet]:
    """A proxy in front of two engines."""
    plan = Plan(list(steps), extra or {}, owner, prompt)
    async with Engine(plan) as one, Engine(plan) as other, live_proxy(one.url, other.url, **settings) as proxy:
        yield Fleet(proxy, plan)


@dataclass
class Fleet:
    """A proxy in front of engines that follow one plan."""

    proxy: Proxy
    plan: Plan

    async def stream(self, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> list[bytes]:
        """The events of one stream."""
        async with Call(self.proxy.url, path, body_for(path, **fields), headers=headers) as call:
            call.send()
            assert await call.head() == 200
            events = []
            while event := await call.event():
                events.append(event)
            return events

    async def counted(self, name: str) -> dict[str, float]:
        """The counts of ``inference_proxy_stream_<name>_total`` that are not zero, by label."""
        page = (await self.proxy.http.get("/metrics")).text
        lines = [line for line in page.splitlines() if line.startswith(f"inference_proxy_stream_{name}_total{{")]
        counts = {line.split('"')[1]: float(line.split()[-1]) for line in lines}
        return {label: count for label, count in counts.items() if count}


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    """A request for a stream."""
    messages = [{"role": "user", "content": "count"}]
    asked: dict[str, dict[str, Any]] = {
        CHAT: {"messages": messages},
        COMPLETIONS: {"prompt": ""},
        MESSAGES: {"messages": messages, "max_tokens": 100},
        RESPONSES: {"input": "count"},
    }
    return {"model": "m", "stream": True, **asked[path], **fields}


def objects(events: list[bytes]) -> list[dict[str, Any]]:
    """The JSON objects of the events."""
    lines = [line for event in events for line in event.splitlines() if line.startswith(b"data: {")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def text(events: list[bytes]) -> str:
    """The text of all events together."""
    found = objects(events)
    choices = [choice for one in found for choice in one.get("choices", ())]
    deltas = [one["delta"] for one in found if one.get("type") == "content_block_delta"]
    pieces = [one["delta"] for one in found if one.get("type") == "response.output_text.delta"]
    return "".join(
        [one.get("text") or one.get("delta", {}).get("content") or "" for one in choices]
        + [delta.get("text", "") for delta in deltas]
        + pieces
    )
