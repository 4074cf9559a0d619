"""The part that all engines share: continuous batching, one step at a time for all sequences in the batch.

A step takes ``fixed + per_prompt_token * p + per_sequence * s + per_context_token * c`` seconds if it reads ``p``
prompt tokens and generates one token for each of ``s`` sequences; ``c`` is the total context of all sequences.
A long prompt therefore delays the next token of all sequences in the batch, as in real engines.

While no prompt is being read, steps involve no decisions, and many of them are simulated as one event.
"""

from __future__ import annotations

import heapq
import itertools
import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from simulation.requests import Request
from simulation.virtual_loop import Event, VirtualLoop

__all__ = ["BatchingEngine", "Client", "EngineState", "Sequence", "Speeds", "Usage"]


@dataclass(frozen=True, slots=True)
class Speeds:
    """Cost coefficients of a step, in seconds; ``tokens_a_step``: the most tokens read and generated per step."""

    fixed: float
    per_prompt_token: float
    per_sequence: float
    per_context_token: float
    tokens_a_step: int

    def slowed(self, factor: float) -> Speeds:
        """The speeds of a machine that is ``factor`` times slower."""
        return Speeds(
            self.fixed * factor,
            self.per_prompt_token * factor,
            self.per_sequence * factor,
            self.per_context_token * factor,
            self.tokens_a_step,
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

    def first_token(self, now: float) -> None:
        """The answer begins."""

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


@dataclass(slots=True)
class _Steps:
    """A series of ``count`` steps; the first takes ``seconds``, each later one ``growth`` more than the one before."""

    began_at: float
    count: int
    seconds: float
    growth: float
    event: Event | None = None

    def duration(self, count: int) -> float:
        return count * self.seconds + self.growth * count * (count - 1) / 2

    def begun_by(self, now: float) -> int:
        """Number of steps begun before ``now``."""
        passed = now - self.began_at
        if self.growth > 0:
            linear = self.seconds - self.growth / 2
            guess = (math.sqrt(linear * linear + 2 * self.growth * passed) - linear) / self.growth
        else:
            guess = passed / self.seconds
        return max(1, min(self.count, math.ceil(guess - 1e-9)))


class BatchingEngine(ABC):
    """An engine with continuous batching.

    Args:
        loop: the virtual clock.
        speeds: speeds of its machine.

    Attributes:
        is_up: the engine is reachable.
        most_waiting: most requests that waited in the engine at the same time.
        tokens: tokens read and generated so far.
    """

    begins_beyond_step = False
    """A request joins the batch even if this step has no room for any of its tokens."""

    def __init__(self, loop: VirtualLoop, speeds: Speeds) -> None:
        self.loop = loop
        self.speeds = speeds
        self.is_up = True
        self.most_waiting = 0
        self.tokens = 0
        self.waiting: deque[Sequence] = deque()
        self._reading: list[Sequence] = []
        self._writing: list[tuple[int, int, Sequence]] = []  # a heap by the step that generates the last token
        self._numbers = itertools.count()
        self._steps_made = 0
        self._context = 0  # total tokens of all sequences in the batch
        self._steps: _Steps | None = None
        self._delay = 0.0  # seconds to add before the next step

    # --- interface for clients and proxies

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

    @property
    def processing(self) -> int:
        """Sequences in the batch."""
        return len(self._reading) + len(self._writing)

    # --- to be implemented by each kind of engine

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
            seconds += speeds.per_prompt_token * read + self._delay
            self._delay = 0.0
            self._steps = _Steps(self.loop.time(), 1, seconds, 0.0)
        else:
            count = self._writing[0][0] - self._steps_made
            self._steps = _Steps(self.loop.time(), count, seconds, speeds.per_context_token * writing)
        self.tokens += read
        self._schedule(self._steps)

    def _schedule(self, steps: _Steps) -> None:
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

    def _read(self, sequence: Sequence, room: int) -> int:
        taken = min(sequence.unread, max(0, room))
        if taken:
            sequence.unread -= taken
            sequence.context += taken
            self._context += taken
            self.has_read(sequence)
        return taken

    def _made(self, count: int) -> None:
        """Complete the current series of ``count`` steps."""
        now = self.loop.time()
        self._steps_made += count
        self._context += count * len(self._writing)
        self.tokens += count * len(self._writing)
        ended = []
        while self._writing and self._writing[0][0] <= self._steps_made:
            ended.append(heapq.heappop(self._writing)[2])
        for sequence in [sequence for sequence in self._reading if not sequence.unread]:
            self._reading.remove(sequence)
            sequence.read_at = now
            last = self._steps_made + sequence.request.answer.tokens - 1  # the first token has been generated by now
            if last > self._steps_made:
                heapq.heappush(self._writing, (last, next(self._numbers), sequence))
            else:
                ended.append(sequence)
            sequence.client.first_token(now)
        for sequence in ended:
            self._finish(sequence, now)
        self._next()

    def _finish(self, sequence: Sequence, now: float) -> None:
        request = sequence.request
        self._context -= request.prompt_tokens + request.answer.tokens - 1
        self.end(sequence)
        usage = Usage(
            request.prompt_tokens, sequence.cached, request.answer.tokens, sequence.read_at - sequence.began_at
        )
        self.loop.at(now, sequence.client.done, usage, now)
