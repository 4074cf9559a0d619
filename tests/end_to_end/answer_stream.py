"""A stream as its client reads it, with the places at which the proxy continued it on another backend."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from support.http_client import Call

__all__ = ["AnswerStream"]


@dataclass
class AnswerStream:
    """A stream of a completion API, while it is read and afterwards.

    Attributes:
        backend: its ``x-backend``.
        pieces: the events of each backend, in order; a comment of the proxy divides them.
        comments: those of the proxy.
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
        if event.startswith(b":"):
            self.comments.append(event)
            self.pieces.append([])
        elif event == b"data: [DONE]\n\n":
            self.done += 1
        else:
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
        shared = {(event["id"], event["model"], event["system_fingerprint"]) for event in self.events}
        is_chat = "chat" in self.events[0]["object"]
        return (self.complete, self.done, finishes, len(shared), len(roles)) == (True, 1, ["length"], 1, is_chat)


def _choices(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for event in events for choice in event.get("choices", ())]


def _text_of(events: list[dict[str, Any]]) -> str:
    return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in _choices(events))
