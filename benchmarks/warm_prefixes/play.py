"""Plays a plan: closed loop, so many clients at a time, each with one conversation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from warm_prefixes.client import Answer, Failed, Message, ask
from warm_prefixes.plan import CLIENTS, Conversation, Plan

__all__ = ["PortOf", "Served", "play"]

_PAUSE_SECONDS = 0.5  # after a failure; SDKs begin with that
_MOST_ATTEMPTS = 40

PortOf = Callable[[Conversation, int], int]
"""Whom to ask: for a conversation, of whose next question so many attempts have failed."""


@dataclass(frozen=True, slots=True)
class Served:
    """A request, and what became of it.

    Attributes:
        turn: of its conversation, from 0.
        first_seconds: from its first attempt to its first token, as its user sees it.
        failures: of the attempts before the one that was answered.
    """

    conversation: Conversation
    turn: int
    answer: Answer
    first_seconds: float
    failures: tuple[str, ...]


@dataclass(slots=True)
class _Run:
    """One run of a plan, shared by its clients' threads.

    Attributes:
        served: in the order in which they were answered.
        milestones: set when so many have been answered.
    """

    plan: Plan
    port_of: PortOf
    milestones: Mapping[int, threading.Event]
    served: list[Served] = field(default_factory=list)
    is_broken: threading.Event = field(default_factory=threading.Event)
    _begun: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> None:
        """One conversation after the other.

        Raises:
            RuntimeError: a request failed again and again; then all clients end.
        """
        try:
            while (conversation := self._next()) is not None:
                self._lead(conversation)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Nobody begins anything, or waits any longer."""
        self.is_broken.set()
        for milestone in self.milestones.values():
            milestone.set()

    def _next(self) -> Conversation | None:
        with self._lock:
            if self.is_broken.is_set() or self._begun == len(self.plan.conversations):
                return None
            self._begun += 1
            return self.plan.conversations[self._begun - 1]

    def _lead(self, conversation: Conversation) -> None:
        told: list[Message] = []
        if conversation.group is not None:
            told.append({"role": "system", "content": self.plan.systems[conversation.group]})
        for turn, question in enumerate(conversation.questions):
            told.append({"role": "user", "content": question})
            served = self._served(conversation, turn, told)
            if served is None:
                return
            told.append({"role": "assistant", "content": served.answer.text})
            self._note(served)

    def _served(self, conversation: Conversation, turn: int, told: list[Message]) -> Served | None:
        """``None``: another client's request failed too often."""
        began = time.monotonic()
        failures: list[str] = []
        while not self.is_broken.is_set():
            try:
                answer = ask(self.port_of(conversation, len(failures)), told)
            except Failed as error:
                failures.append(str(error))
                if len(failures) == _MOST_ATTEMPTS:
                    raise RuntimeError(f"a request failed {_MOST_ATTEMPTS} times: {', '.join(failures)}") from error
                self.is_broken.wait(_PAUSE_SECONDS)
            else:
                return Served(conversation, turn, answer, answer.first_at - began, tuple(failures))
        return None

    def _note(self, served: Served) -> None:
        with self._lock:
            self.served.append(served)
            milestone = self.milestones.get(len(self.served))
        if milestone is not None:
            milestone.set()


def play(plan: Plan, port_of: PortOf, at: Mapping[float, Callable[[], None]]) -> tuple[list[Served], float]:
    """All requests with their answers, and the seconds that they took together.

    Args:
        at: what is to happen when this part of the requests has been answered.

    Raises:
        RuntimeError: a request failed again and again.
    """
    events = {round(part * plan.requests): (threading.Event(), action) for part, action in at.items()}
    run = _Run(plan, port_of, {count: event for count, (event, _) in events.items()})

    def script() -> None:
        for event, action in events.values():
            event.wait()
            if not run.is_broken.is_set():
                action()

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        began = time.monotonic()
        try:
            clients = [pool.submit(run.client) for _ in range(CLIENTS)]
            scripted = pool.submit(script)
            wait(clients)
            seconds = time.monotonic() - began
            for each in (*clients, scripted):
                each.result()
        except BaseException:  # Ctrl-C too, which comes here alone: the threads would go on
            run.stop()
            raise
    return run.served, seconds
