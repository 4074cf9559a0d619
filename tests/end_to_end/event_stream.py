"""A stream of typed events as its client reads it: Anthropic's messages, or OpenAI's responses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from end_to_end.breaking_engine import objects
from support.http_client import Call

__all__ = ["EventStream"]


@dataclass
class EventStream:
    """A stream, while it is read and afterwards. A subclass knows the path, and the events that have text.

    Attributes:
        backend: its ``x-backend``.
        events: all of them, in order.
        seams: how many pieces of text came before each continuation.
        complete: whether its body has ended properly.
    """

    path: ClassVar[str]

    backend: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    seams: list[int] = field(default_factory=list)
    complete: bool = False

    async def read(self, url: str, body: dict[str, Any]) -> None:
        """Send the request, and read the stream to its end."""
        async with Call(url, self.path, body) as call:
            call.send()
            assert await call.head() == 200
            self.backend = call.headers.get("x-backend", "")
            while event := await call.event():
                if event.startswith(b":"):
                    self.seams.append(len(self.deltas))
                self.events += objects([event])
            self.complete = call.complete

    @property
    def deltas(self) -> list[str]:
        """The pieces of text."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.deltas)
