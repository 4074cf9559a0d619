"""Clients that keep their connections, and send chats, streams, conversations and responses until told to stop."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from support.http_client import Call

__all__ = ["ALL_KINDS", "REPEATABLE_KINDS", "Kind", "Load", "Request", "load"]

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
_TURNS = 4
_TOKENS = (20, 40, 60, 80)
_FIELDS = {"temperature": 0, "seed": 1}
_LAST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request.

    Attributes:
        streams: whether its reply is a stream.
        talks: whether each request repeats the earlier turns of its conversation.
    """

    path: str
    streams: bool
    talks: bool = False

    @property
    def is_repeatable(self) -> bool:
        """Whether NGINX may repeat it after it was sent, as long as the reply has not begun."""
        return self.path == CHAT


REPEATABLE_KINDS = (Kind(CHAT, streams=True), Kind(CHAT, streams=False), Kind(CHAT, streams=True, talks=True))
ALL_KINDS = (*REPEATABLE_KINDS, Kind(RESPONSES, streams=True), Kind(RESPONSES, streams=False))


@dataclass(slots=True)
class Request:
    """One request as its client sees it.

    Attributes:
        request_id: its X-Request-Id.
        began_at, ended_at: monotonic seconds; ``None`` while it is in flight.
        status: of the reply; 0 before it.
        events: of a stream, received so far.
        problem: why it failed; empty if it did not.
        cached_tokens, prompt_tokens: as the engine reports them.
    """

    kind: Kind
    request_id: str
    began_at: float
    ended_at: float | None = None
    status: int = 0
    events: int = 0
    problem: str = ""
    backend: str = ""
    cached_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def has_begun_to_answer(self) -> bool:
        return self.status != 0

    def was_in_flight(self, at: float) -> bool:
        return self.began_at <= at and (self.ended_at is None or self.ended_at > at)


class _KeptCall(Call):
    """A request on a connection that others have used, and will use."""

    def __init__(self, connection: _Connection, request_id: str, path: str, body: dict[str, Any]) -> None:
        super().__init__(connection.url, path, body, headers={"X-Request-Id": request_id})
        self._connection = connection

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await self._connection.streams()
        return self

    async def leave(self) -> None:
        if not self.complete or self.headers.get("connection", "").lower() == "close":
            await super().leave()
            self._connection.forget()


class _Connection:
    """One client's connection to NGINX; opened again when it was closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None or self._streams[0].at_eof():
            host, _, port = self.url.removeprefix("http://").rpartition(":")
            self._streams = await asyncio.open_connection(host, int(port))
        return self._streams

    def forget(self) -> None:
        self._streams = None

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


@dataclass(slots=True)
class Load:
    """What clients have sent and received.

    Attributes:
        topic: the first word of all questions.
        requests: all of them, in the order in which they began.
        is_over: set it to end the load; requests in flight finish.
    """

    topic: str
    requests: list[Request] = field(default_factory=list)
    is_over: bool = False

    @property
    def failed(self) -> list[Request]:
        return [request for request in self.requests if request.problem]

    @property
    def succeeded(self) -> list[Request]:
        return [request for request in self.requests if request.ended_at is not None and not request.problem]

    async def goes_on(self, requests: int = 40) -> None:
        """Wait until so many more requests have been answered."""
        before = len(self.succeeded)
        async with asyncio.timeout(_LAST_SECONDS):
            while len(self.succeeded) < before + requests:
                assert not self.is_over
                await asyncio.sleep(0.02)


@asynccontextmanager
async def load(url: str, kinds: Sequence[Kind], clients: int = 16, topic: str = "kin") -> AsyncIterator[Load]:
    """Clients of ``url``, each with one connection and one kind of request, until the context ends.

    Args:
        url: of NGINX.
        kinds: of requests; each client has one of them.
        clients: their number.
        topic: the first word of all questions; prompts about another one share no tokens with these.
    """
    running = Load(topic=topic)
    numbers = itertools.count()
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(_client(running, url, kinds[number % len(kinds)], number, numbers))
        try:
            yield running
        finally:
            running.is_over = True


async def _client(running: Load, url: str, kind: Kind, number: int, numbers: Iterator[int]) -> None:
    connection = _Connection(url)
    turns: list[dict[str, str]] = []
    while not running.is_over:
        count = next(numbers)
        request = Request(kind, f"load-{number}-{count}", time.monotonic())
        running.requests.append(request)
        if not kind.talks or len(turns) >= 2 * _TURNS:
            turns = []
        turns.append({"role": "user", "content": f"{running.topic} sol mer {number} {count} tas"})
        body = _body(kind, turns, _TOKENS[count % len(_TOKENS)])
        try:
            answer = await _ask(connection, request, body)
        except (OSError, EOFError) as error:
            request.problem = request.problem or repr(error)
            connection.forget()
        else:
            turns.append({"role": "assistant", "content": answer})
        request.ended_at = time.monotonic()
        if request.problem:
            turns = []
    connection.close()


def _body(kind: Kind, turns: list[dict[str, str]], tokens: int) -> dict[str, Any]:
    if kind.path == RESPONSES:
        return {
            "model": "m",
            "input": turns[-1]["content"],
            "max_output_tokens": tokens,
            "stream": kind.streams,
        } | _FIELDS
    usage = {"stream_options": {"include_usage": True}} if kind.streams else {}
    return {"messages": turns, "max_tokens": tokens, "stream": kind.streams, **_FIELDS, **usage}


async def _ask(connection: _Connection, request: Request, body: dict[str, Any]) -> str:
    """Send the request and read the whole reply; returns the text of a chat."""
    async with _KeptCall(connection, request.request_id, request.kind.path, body) as call:
        call.send()
        request.status = await call.head()
        request.backend = call.headers.get("x-backend", "")
        if request.status != 200:
            request.problem = f"{request.status} {(await call.reply()).body[:200]!r}"
            return ""
        if not request.kind.streams:
            reply = await call.reply()
            request.problem = "" if reply.complete else "the reply was cut"
            return _text([reply.json], request) if reply.complete else ""
        documents = []
        while event := await call.event():
            request.events += 1
            documents += [json.loads(line[6:]) for line in event.splitlines() if line.startswith(b"data: {")]
        request.problem = _problem(request.kind, call.complete, documents)
        return _text(documents, request)


def _problem(kind: Kind, complete: bool, documents: Sequence[dict[str, Any]]) -> str:
    if not complete:
        return "the stream was cut"
    if any("error" in document for document in documents):
        return f"the stream ended with {documents[-1]}"
    if kind.path == RESPONSES:
        ends = [one for one in documents if one.get("type") in ("response.completed", "response.incomplete")]
    else:
        ends = [one for one in documents for choice in one["choices"] if choice["finish_reason"] == "length"]
    return "" if len(ends) == 1 else f"the stream has {len(ends)} ends"


def _text(documents: Iterable[dict[str, Any]], request: Request) -> str:
    text = ""
    for document in documents:
        if usage := document.get("usage"):
            request.prompt_tokens = usage.get("prompt_tokens", 0)
            request.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        for choice in document.get("choices", ()):
            text += (choice.get("delta") or choice.get("message") or {}).get("content") or ""
    return text
