"""Clients that send a trace over HTTP: each session's next turn follows the answer that it received."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from completions.answers import Answer, Failed, Message
from emulation.client import ask
from emulation.messages import text_of
from simulation.requests import Prompt
from simulation.trace import Session, Turn

__all__ = ["Play", "Played", "Served", "play"]

_MOST_ATTEMPTS = 3  # the SDKs' default
_PAUSE_SECONDS = 0.5  # their first back-off
_PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Play:
    """How a trace is played.

    Attributes:
        port: of the proxy.
        model: name of the model.
        seconds: no request begins later.
        most_requests: no more requests begin.
        bounds_all: every request states the length of its answer as ``max_tokens``, for models that never end.
    """

    port: int
    model: str
    seconds: float
    most_requests: int
    bounds_all: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """An answered request; times in seconds.

    Attributes:
        began_at: its first attempt, after the start of the trace.
        first_seconds: from then to the first token; ``None`` without streaming, where the answer arrives at once.
    """

    began_at: float
    first_seconds: float | None
    whole_seconds: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Played:
    """A whole run.

    Attributes:
        failed_attempts: number of attempts without an answer, by the kind of failure.
        unanswered: requests whose attempts all failed; each ends its session.
        seconds: from the start of the trace to the last answer.
    """

    served: list[Served]
    failed_attempts: Counter[str]
    unanswered: int
    seconds: float


async def play(plan: Play, sessions: Sequence[Session]) -> Played:
    """Send all requests, and wait for all answers."""
    player = _Player(plan)
    async with asyncio.TaskGroup() as group:
        for session in sessions:
            group.create_task(player.lead(session))
    return Played(player.served, player.failed, player.unanswered, player.now)


class _Player:
    def __init__(self, plan: Play) -> None:
        self._plan = plan
        self._began_at = time.monotonic()
        self._asked = 0
        self.served: list[Served] = []
        self.failed = Counter[str]()
        self.unanswered = 0

    @property
    def now(self) -> float:
        return time.monotonic() - self._began_at

    async def lead(self, session: Session) -> None:
        """Send a session's requests."""
        messages: list[Message] = []
        due = session.start
        for number, turn in enumerate(session.turns):
            if due + turn.pause > self._plan.seconds:
                return
            await asyncio.sleep(due + turn.pause - self.now)
            if self._asked >= self._plan.most_requests:
                return
            self._asked += 1
            messages += _added(turn.added, is_first=not number)
            answer = await self._answer(session, turn, messages)
            if answer is None:
                return
            messages.append({"role": "assistant", "content": answer.text})
            due = self.now

    async def _answer(self, session: Session, turn: Turn, messages: list[Message]) -> Answer | None:
        """The answer; ``None`` if all attempts failed."""
        body = self._body(session, turn, messages)
        fields = {"X-Session-ID": session.header} if session.header else {}
        began = time.monotonic()
        for attempt in range(_MOST_ATTEMPTS):
            try:
                answer = await ask(self._plan.port, body, fields, _PATIENCE_SECONDS)
            except Failed as error:
                self.failed[str(error)] += 1
                if attempt + 1 < _MOST_ATTEMPTS:
                    await asyncio.sleep(_PAUSE_SECONDS * 2**attempt)
            else:
                first = answer.first_at - began if session.is_streamed else None
                self.served.append(Served(began - self._began_at, first, time.monotonic() - began, answer))
                return answer
        self.unanswered += 1
        return None

    def _body(self, session: Session, turn: Turn, messages: list[Message]) -> dict[str, Any]:
        """The seed tells an emulated engine how long its answer is, which its proxy must not know."""
        body: dict[str, Any] = {"model": self._plan.model, "messages": messages, "temperature": 0}
        body["seed"] = turn.answer.tokens
        bound = turn.answer.tokens if self._plan.bounds_all else turn.max_tokens
        if bound is not None:
            body["max_tokens"] = bound
        if session.is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


def _added(texts: Prompt, *, is_first: bool) -> list[Message]:
    """A turn's messages; the first of several texts that begin a session is the system prompt."""
    roles = ["user"] * len(texts)
    if is_first and len(texts) > 1:
        roles[0] = "system"
    return [{"role": role, "content": text_of(text)} for role, text in zip(roles, texts, strict=True)]
