"""Questions to the other replicas, for operators' commands. One member of each replica answers for all of it."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NamedTuple

from inference_engine_proxy_server.state.broadcast import Broadcast, Receiver
from inference_engine_proxy_server.state.outbox import Outbox
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError

__all__ = ["ANSWER_SECONDS", "Questions"]

ANSWER_SECONDS = 1.5
"""The longest wait for answers: a replica asks its own workers first, which have a second."""

_QUESTIONS, _ANSWERS = "questions", "answers"
_MOST_WAITING = 100

logger = logging.getLogger(__name__)


class Questions:
    """Asks, and answers.

    Args:
        state: the shared state.
        broadcast: its messages; this object must be made before they are received.
        outbox: sends the answers.
        answers: how this replica answers questions about each subject: takes an argument and returns an answer, both
            JSON. ``None`` if another member answers.
    """

    def __init__(
        self,
        state: SharedState,
        broadcast: Broadcast,
        outbox: Outbox,
        answers: Mapping[str, Callable[[Any], Awaitable[Any]]] | None,
    ) -> None:
        self._state = state
        self._broadcast = broadcast
        self._outbox = outbox
        self._answers = answers or {}
        self._asked: asyncio.Queue[_Question] = asyncio.Queue(_MOST_WAITING)
        self._open: dict[str, dict[str, Any]] = {}  # the answers to each question that this member has asked
        self._arrived = asyncio.Event()
        broadcast.receive(_ANSWERS, Receiver(self._on_answer))
        if answers is not None:
            broadcast.receive(_QUESTIONS, Receiver(self._on_question))

    @property
    def replica(self) -> str:
        """The replica of this member."""
        return replica_of(self._state.member)

    async def ask(self, subject: str, replicas: Collection[str], argument: object = None) -> dict[str, Any]:
        """What ``replicas`` answer within :data:`ANSWER_SECONDS`, by replica; those that do not answer are missing."""
        if not replicas:
            return {}
        question = secrets.token_hex(8)
        answers = self._open[question] = {}
        try:
            asked = {"question": question, "from": self._state.member, "subject": subject, "argument": argument}
            await self._broadcast.send(_QUESTIONS, json.dumps(asked).encode())
            async with asyncio.timeout(ANSWER_SECONDS):
                while not answers.keys() >= set(replicas):
                    self._arrived.clear()
                    await self._arrived.wait()
        except (StateUnavailableError, TimeoutError):
            pass
        finally:
            del self._open[question]
        return {replica: answer for replica, answer in answers.items() if replica in replicas}

    async def run(self) -> None:
        """Answer the questions of other replicas until cancelled."""
        while True:
            name, subject, argument = await self._asked.get()
            answer = {"question": name, "replica": self.replica, "answer": await self._answers[subject](argument)}
            self._outbox.post(_ANSWERS, json.dumps(answer).encode())

    def _on_question(self, message: bytes) -> None:
        try:
            question = json.loads(message)
            if replica_of(question["from"]) != self.replica and question["subject"] in self._answers:
                self._asked.put_nowait(_Question(question["question"], question["subject"], question["argument"]))
        except (ValueError, TypeError, KeyError, AttributeError, asyncio.QueueFull):
            logger.warning("shared state: a question of another replica was left without an answer")

    def _on_answer(self, message: bytes) -> None:
        try:
            content = json.loads(message)
            found = self._open.get(content["question"])
            if found is not None:
                found[content["replica"]] = content["answer"]
                self._arrived.set()
        except (ValueError, TypeError, KeyError):
            logger.warning("shared state: an answer of another replica cannot be read")


class _Question(NamedTuple):
    name: str
    subject: str
    argument: Any


def replica_of(member: str) -> str:
    """The replica that a member belongs to."""
    return member.partition(".")[0]
