"""The part that all engines share: continuous batching, one step at a time for all sequences in the batch.

A step reads ``p`` prompt tokens, and generates one token for each of ``s`` sequences. It takes ``fixed +
per_prompt_token * p + per_sequence * s + per_context_token * c + per_attended_token * a`` seconds, where ``c`` is the
total context of all sequences, and ``a`` the sum of the numbers of tokens before each token read. A long prompt
therefore delays the next token of all sequences in the batch, as in real engines.

While no prompt is being read, steps involve no decisions, and many of them are simulated as one event.

The same engines run in virtual time (``simulation``) and in real time (``emulation``).
"""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from simulation.events import Events
from simulation.requests import Request
from simulation.steps import Steps

__all__ = ["BatchingEngine", "Client", "EngineState", "Sequence", "Speeds", "Usage"]


@dataclass(frozen=True, slots=True)
class Speeds:
    """Cost coefficients of a step, in seconds; ``tokens_a_step``: the most tokens read and generated per step."""

    fixed: float
    per_prompt_token: float
    per_sequence: float
    per_context_token: float
    tokens_a_step: int
    per_attended_token: float = 0.0

    def slowed(self, factor: float) -> Speeds:
        """The speeds of a machine that is ``factor`` times slower."""
        return Speeds(
            self.fixed * factor,
            self.per_prompt_token * factor,
            self.per_sequence * factor,
            self.per_context_token * factor,
            self.tokens_a_step,
            self.per_attended_token * factor,
        )


@dataclass(frozen=True, slots=True)
class EngineState:
    """The state that an engine reports when polled.

    Attributes:
        capacity: number of slots; ``None`` if the engine has none.
        memory_tokens: size of its KV cache in tokens; ``None`` if not reported.
        tokens: tokens read and generated so far.
    """

    processing: int
    waiting: int
    capacity: int | None
    context_use: float
    memory_tokens: int | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage that an engine reports at the end of an answer."""

    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    prompt_seconds: float


class Client(Protocol):
    """The sender of a request."""

    def begun(self, cached_tokens: int) -> None:
        """The request has left the queue; ``cached_tokens`` of its prompt need not be read."""

    def first_token(self, now: float) -> None:
        """The answer begins."""

    def wrote(self, tokens: int) -> None:
        """The answer has ``tokens`` tokens so far; only if the engine reports progress."""

    def lost(self, now: float) -> None:
        """The connection broke before the answer was complete."""

    def done(self, usage: Usage, now: float) -> None:
        """The answer is complete."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request inside an engine; ``unread``: prompt tokens yet to be read."""

    request: Request
    client: Client
    unread: int = 0
    cached: int = 0
    began_at: float = 0.0
    read_at: float = 0.0
    context: int = field(default=0)


class BatchingEngine(ABC):
    """An engine with continuous batching.

    Args:
        loop: the clock.
        speeds: speeds of its machine.
        reported_steps: number of steps after which it reports the progress of all answers; ``None`` for no reports.

    Attributes:
        is_up: the engine is reachable.
        most_waiting: most requests that waited in the engine at the same time.
        tokens: tokens read and generated so far.
        steps_made: number of steps so far.
    """

    begins_beyond_step = False  # a request joins the batch even if this step has no room for any of its tokens

    def __init__(self, loop: Events, speeds: Speeds, *, reported_steps: int | None = None) -> None:
        self.loop = loop
        self.speeds = speeds
        self._reported_steps = reported_steps
        self._next_report = 0 if reported_steps is None else reported_steps
        self.is_up = True
        self.most_waiting = self.tokens = 0
        self.waiting: deque[Sequence] = deque()
        self._reading: list[Sequence] = []
        self._writing: list[tuple[int, int, Sequence]] = []  # a heap by the step that generates the last token
        self._numbers = itertools.count()
        self.steps_made = 0
        self._context = 0  # total tokens of all sequences in the batch
        self._steps: Steps | None = None
        self._attended = 0.0  # of the step being formed
        self._delay = 0.0  # seconds to add before the next step

    def submit(self, request: Request, client: Client) -> None:
        """Accept ``request``."""
        self.waiting.append(Sequence(request, client))
        if self._steps is None:
            self._next()
        elif not self._reading and self.may_begin(self.waiting[0]):
            self._cut()
        self.most_waiting = max(self.most_waiting, len(self.waiting))

    @abstractmethod
    def state(self) -> EngineState:
        """The state reported now."""

    @abstractmethod
    def forget(self) -> None:
        """Clear the cache, as a restart does; allowed only while idle."""

    def kill(self) -> None:
        """End at once: all requests break off, and the cache is lost."""
        if (steps := self._steps) is not None and steps.event is not None:
            steps.event.cancel()
        running = [*self._reading, *(sequence for _, _, sequence in self._writing)]
        for sequence in running:
            self.end(sequence)
        broken = [*self.waiting, *running]
        self.waiting, self._reading, self._writing = deque(), [], []
        self._steps, self._context, self._delay = None, 0, 0.0
        self.forget()
        for sequence in broken:
            sequence.client.lost(self.loop.time())

    @property
    def processing(self) -> int:
        """Sequences in the batch."""
        return len(self._reading) + len(self._writing)

    @property
    def has_free_slot(self) -> bool:
        """Whether one more request would begin at once; always true for an engine without slots."""
        return True

    @abstractmethod
    def may_begin(self, sequence: Sequence) -> bool:
        """Whether there is room for ``sequence`` in the batch."""

    @abstractmethod
    def begin(self, sequence: Sequence) -> None:
        """Allocate room for ``sequence``, and set ``cached``, the number of its prompt tokens already cached."""

    @abstractmethod
    def has_read(self, sequence: Sequence) -> None:
        """Called when more of ``sequence``'s prompt has been put into a step."""

    @abstractmethod
    def end(self, sequence: Sequence) -> None:
        """Free the room of ``sequence``."""

    def delay(self, seconds: float) -> None:
        """Delay the next step by ``seconds``."""
        self._delay += seconds

    # --- steps

    def _next(self) -> None:
        """Begin the next step or series of steps, if there is any work."""
        room = self.speeds.tokens_a_step - len(self._writing)
        read = 0
        for sequence in self._reading:
            read += self._read(sequence, room - read)
        while self.waiting and (read < room or self.begins_beyond_step) and self.may_begin(self.waiting[0]):
            sequence = self.waiting.popleft()
            self._begin(sequence)
            read += self._read(sequence, room - read)
        if not self._reading and not self._writing:
            self._steps = None
            return
        speeds, writing = self.speeds, len(self._writing)
        seconds = speeds.fixed + speeds.per_sequence * writing + speeds.per_context_token * self._context
        if self._reading:
            seconds += speeds.per_prompt_token * read + speeds.per_attended_token * self._attended + self._delay
            self._attended = self._delay = 0.0
            self._steps = Steps(self.loop.time(), 1, seconds, 0.0)
        else:
            count = self._writing[0][0] - self.steps_made
            if self._reported_steps is not None:
                count = min(count, self._next_report - self.steps_made)
            self._steps = Steps(self.loop.time(), count, seconds, speeds.per_context_token * writing)
        self.tokens += read
        self._schedule(self._steps)

    def _schedule(self, steps: Steps) -> None:
        steps.event = self.loop.at(steps.began_at + steps.duration(steps.count), self._made, steps.count)

    def _cut(self) -> None:
        """End the current series after its current step, so that waiting requests are considered."""
        steps = self._steps
        if steps is None or steps.event is None:
            return
        begun = steps.begun_by(self.loop.time())
        if begun < steps.count:
            steps.event.cancel()
            steps.count = begun
            self._schedule(steps)

    def _begin(self, sequence: Sequence) -> None:
        self.begin(sequence)
        sequence.began_at = self.loop.time()
        sequence.unread = sequence.request.prompt_tokens - sequence.cached
        sequence.context = sequence.cached
        self._context += sequence.cached
        self._reading.append(sequence)
        sequence.client.begun(sequence.cached)

    def _read(self, sequence: Sequence, room: int) -> int:
        taken = min(sequence.unread, max(0, room))
        if taken:
            sequence.unread -= taken
            self._attended += taken * (sequence.context + taken / 2)
            sequence.context += taken
            self._context += taken
            self.has_read(sequence)
        return taken

    def _made(self, count: int) -> None:
        """Complete the current series of ``count`` steps."""
        now = self.loop.time()
        self.steps_made += count
        self._context += count * len(self._writing)
        self.tokens += count * len(self._writing)
        ended = []
        while self._writing and self._writing[0][0] <= self.steps_made:
            ended.append(heapq.heappop(self._writing)[2])
        if self._reported_steps is not None and self.steps_made >= self._next_report:
            self._next_report = self.steps_made + self._reported_steps
            self._report()
        for sequence in [sequence for sequence in self._reading if not sequence.unread]:
            self._reading.remove(sequence)
            sequence.read_at = now
            last = self.steps_made + sequence.request.answer.tokens - 1  # the first token has been generated by now
            if last > self.steps_made:
                heapq.heappush(self._writing, (last, next(self._numbers), sequence))
            else:
                ended.append(sequence)
            sequence.client.first_token(now)
        for sequence in ended:
            self._finish(sequence, now)
        self._next()

    def _report(self) -> None:
        for last, _, sequence in self._writing:
            sequence.client.wrote(sequence.request.answer.tokens - (last - self.steps_made))

    def _finish(self, sequence: Sequence, now: float) -> None:
        request = sequence.request
        self._context -= request.prompt_tokens + request.answer.tokens - 1
        self.end(sequence)
        usage = Usage(
            request.prompt_tokens, sequence.cached, request.answer.tokens, sequence.read_at - sequence.began_at
        )
        self.loop.at(now, sequence.client.done, usage, now)
