"""Collects the parts of all workers for a snapshot."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from inference_engine_proxy_server.dashboard.merged_events import MergedEvents
from inference_engine_proxy_server.dashboard.worker_part import JournalPosition, PartMaker, Wanted, WorkerPart
from inference_engine_proxy_server.processes.siblings import Answers, Siblings

__all__ = ["Collected", "Workers"]

_PART = "dashboard"
_ANSWER_SECONDS = 0.5  # a worker that hangs delays a snapshot by so much


@dataclass(frozen=True, slots=True)
class Collected:
    """The parts of a snapshot.

    Attributes:
        parts: of this worker, and of the siblings that answered.
        silent: numbers of the siblings that did not answer.
        count: of all workers.
    """

    parts: tuple[WorkerPart, ...]
    silent: tuple[int, ...]
    count: int


class Workers:
    """This worker and its siblings.

    Args:
        maker: makes the part of this worker.
        siblings: the other workers.

    Attributes:
        events: of all workers.
    """

    def __init__(self, maker: PartMaker, siblings: Siblings) -> None:
        self._maker = maker
        self._siblings = siblings
        self._known: dict[int, JournalPosition] = {}
        self.events = MergedEvents()

    @property
    def answers(self) -> Answers:
        """The answers of this worker to queries of its siblings."""
        return {_PART: self._answer}

    async def collect(self, *, with_requests: bool, with_totals: bool) -> Collected:
        """The parts of all workers; see :class:`Wanted`."""
        siblings = self._siblings
        unknown = JournalPosition()
        wanted = {
            number: Wanted(with_requests, with_totals, self._known.get(number, unknown))
            for number in (siblings.number, *siblings.others)
        }
        questions = {number: f"{_PART} {msgspec.json.encode(wanted[number]).decode()}" for number in siblings.others}
        answers = await siblings.ask_each(questions, _ANSWER_SECONDS)
        parts = [self._maker.make(wanted[siblings.number])]
        parts += [msgspec.json.decode(answer, type=WorkerPart) for answer in answers.values() if answer is not None]
        self._known.update((part.worker, part.journal) for part in parts)
        self.events.take(parts)
        silent = tuple(number for number, answer in answers.items() if answer is None)
        return Collected(tuple(parts), silent, len(wanted))

    def _answer(self, question: str) -> bytes:
        return msgspec.json.encode(self._maker.make(msgspec.json.decode(question, type=Wanted)))
