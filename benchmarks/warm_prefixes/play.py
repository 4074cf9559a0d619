"""Plays a plan with a fixed number of concurrent clients, each with one conversation at a time (closed loop)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from completions.answers import Answer, Failed, Message
from warm_prefixes.client import ask
from warm_prefixes.plan import Conversation, Plan

__all__ = ["PortOf", "Served", "play"]

_PAUSE_SECONDS = 0.5  # after a failure; the SDKs' first back-off
_MOST_ATTEMPTS = 40

PortOf = Callable[[Conversation, int], int]
"""Returns the port for a conversation's next question, given the number of failed attempts."""


@dataclass(frozen=True, slots=True)
class Served:
    """An answered request.

    Attributes:
        turn: number within its conversation, from 0.
        first_seconds: from the first attempt to the first token, as the user experiences it.
        failures: the failed attempts before the answer.
    """

    conversation: Conversation
    turn: int
    answer: Answer
    first_seconds: float
    failures: tuple[str, ...]


@dataclass(slots=True)
class _Run:
    """One run of a plan, shared by the client threads.

    Attributes:
        served: requests in the order of their answers.
        milestones: events set after the given number of answers.
    """

    plan: Plan
    port_of: PortOf
    milestones: Mapping[int, threading.Event]
    served: list[Served] = field(default_factory=list)
    is_broken: threading.Event = field(default_factory=threading.Event)
    _begun: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> None:
        """Hold one conversation after the other.

        Raises:
            RuntimeError: a request failed too often; all clients end.
        """
        try:
            while (conversation := self._next()) is not None:
                self._lead(conversation)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all clients and waiters."""
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
        messages: list[Message] = []
        if conversation.group is not None:
            messages.append({"role": "system", "content": self.plan.systems[conversation.group]})
        for turn, question in enumerate(conversation.questions):
            messages.append({"role": "user", "content": question})
            served = self._served(conversation, turn, messages)
            if served is None:
                return
            messages.append({"role": "assistant", "content": served.answer.text})
            self._note(served)

    def _served(self, conversation: Conversation, turn: int, messages: list[Message]) -> Served | None:
        """The answered request; ``None`` if another client's request failed too often."""
        began = time.monotonic()
        failures: list[str] = []
        while not self.is_broken.is_set():
            try:
                answer = ask(self.port_of(conversation, len(failures)), messages)
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


def play(
    plan: Plan, clients: int, port_of: PortOf, at: Mapping[float, Callable[[], None]]
) -> tuple[list[Served], float]:
    """Play all requests; returns them with their answers, and the total time in seconds.

    Args:
        clients: number of concurrent clients.
        at: functions to call, by the fraction of requests answered.

    Raises:
        RuntimeError: a request failed too often.
    """
    events = {round(part * plan.requests): (threading.Event(), action) for part, action in at.items()}
    run = _Run(plan, port_of, {count: event for count, (event, _) in events.items()})

    def script() -> None:
        for event, action in events.values():
            event.wait()
            if not run.is_broken.is_set():
                action()

    with ThreadPoolExecutor(clients + 1) as pool:
        began = time.monotonic()
        try:
            asking = [pool.submit(run.client) for _ in range(clients)]
            scripted = pool.submit(script)
            wait(asking)
            seconds = time.monotonic() - began
            for each in (*asking, scripted):
                each.result()
        except BaseException:  # including Ctrl-C, which reaches only this thread
            run.stop()
            raise
    return run.served, seconds
