"""A stream as its client reads it, with the places at which the proxy continued it on another backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from support.http_client import Call

__all__ = ["AnswerStream", "Question"]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class AnswerStream:
    """A stream of a completion API, while it is read and afterwards.

    Attributes:
        backend: its ``x-backend``.
        pieces: the events of each backend, in order; a comment of the proxy divides them.
        comments: those about continuations.
        done: how often it sent ``[DONE]``.
        complete: whether its body has ended properly.
    """

    backend: str = ""
    pieces: list[list[dict[str, Any]]] = field(default_factory=lambda: [[]])
    comments: list[bytes] = field(default_factory=list)
    done: int = 0
    complete: bool = False

    async def read(self, url: str, path: str, body: dict[str, Any]) -> None:
        """Send the request, and read the stream to its end."""
        async with Call(url, path, body) as call:
            call.send()
            assert await call.head() == 200, (await call.reply()).body
            self.backend = call.headers.get("x-backend", "")
            while event := await call.event():
                self._take(event)
            self.complete = call.complete

    def _take(self, event: bytes) -> None:
        if event.startswith(b": resumed"):
            self.comments.append(event)
            self.pieces.append([])
        elif event == b"data: [DONE]\n\n":
            self.done += 1
        elif not event.startswith(b":"):
            self.pieces[-1].append(json.loads(event.removeprefix(b"data: ")))

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for piece in self.pieces for event in piece]

    @property
    def texts(self) -> list[str]:
        """The text that each backend added."""
        return [_text_of(piece) for piece in self.pieces]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def usage(self) -> dict[str, Any] | None:
        found = [event["usage"] for event in self.events if event.get("usage")]
        assert len(found) < 2
        return found[0] if found else None

    def is_one_answer(self) -> bool:
        """Whether the events are those of one uninterrupted answer."""
        choices = _choices(self.events)
        roles = [one for one in choices if "role" in one.get("delta", {})]
        finishes = [one["finish_reason"] for one in choices if one["finish_reason"]]
        shared = {(event["id"], event["model"]) for event in self.events}
        systems = {event.get("system_fingerprint") for event in self.events} - {None}  # vLLM: only in the last event
        is_chat = "chat" in self.events[0]["object"]
        return (
            (self.complete, self.done, finishes) == (True, 1, ["length"])
            and (len(shared), len(systems), len(roles)) == (1, 1, is_chat)
        )  # fmt: skip


@dataclass
class Question:
    """A request and its stream.

    Attributes:
        path: a completion API.
        body: of the request.
        stream: as far as it was read.
    """

    path: str
    body: dict[str, Any]
    stream: AnswerStream = field(default_factory=AnswerStream)

    @classmethod
    def about(cls, words: str, max_tokens: int, *, is_chat: bool, wants_usage: bool, **fields: Any) -> Question:
        """A question at temperature 0."""
        body: dict[str, Any] = {"stream": True, "temperature": 0, "max_tokens": max_tokens, **fields}
        if wants_usage:
            body["stream_options"] = {"include_usage": True}
        if is_chat:
            return cls(CHAT, {**body, "messages": [{"role": "user", "content": words}]})
        return cls(COMPLETIONS, {**body, "prompt": words})

    @property
    def wants_usage(self) -> bool:
        return "stream_options" in self.body

    async def ask(self, url: str) -> None:
        """Send the request, and read the stream to its end."""
        await self.stream.read(url, self.path, self.body)

    def seams(self) -> Iterator[tuple[str, int, str]]:
        """For each continuation: the text before it, the number of tokens of that, and the text that it added."""
        before, tokens = "", 0
        texts = self.stream.texts
        for piece, text, added in zip(self.stream.pieces, texts, texts[1:], strict=False):
            before, tokens = before + text, tokens + sum(map(_has_text, piece))
            yield before, tokens, added

    def continued_after(self, text: str, tokens: int) -> dict[str, Any]:
        """The body that asks an engine for the rest of the answer."""
        body = {**self.body, "max_tokens": self.body["max_tokens"] - tokens}
        if self.path == COMPLETIONS:
            return {**body, "prompt": body["prompt"] + text}
        messages = [*body["messages"], {"role": "assistant", "content": text}]
        return {**body, "messages": messages, "continue_final_message": True, "add_generation_prompt": False}

    async def is_what_an_engine_says(self, url: str) -> bool:
        """Whether each continuation is the beginning of the engine's own, the last one all of it."""
        for before, tokens, added in self.seams():
            direct = AnswerStream()
            await direct.read(url, self.path, self.continued_after(before, tokens))
            said = direct.text.removeprefix(before) if self.path == CHAT else direct.text
            if before + added != self.stream.text:
                said = said[: len(added)]
            elif self.wants_usage:
                assert direct.usage
                self.check_usage(max(0, direct.usage["prompt_tokens"] - tokens))
            if said != added:
                return False
        return True

    def check_usage(self, prompt_tokens: int) -> None:
        usage = self.stream.usage
        assert usage
        assert usage["completion_tokens"] == self.body["max_tokens"]
        assert usage["prompt_tokens"] == prompt_tokens
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def _choices(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for event in events for choice in event.get("choices", ())]


def _text_of(events: list[dict[str, Any]]) -> str:
    return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in _choices(events))


def _has_text(event: dict[str, Any]) -> bool:
    return bool(_text_of([event]))
