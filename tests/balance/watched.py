"""Recording clients, for tests of one engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from simulation.batching import BatchingEngine, Usage
from simulation.events import Events
from simulation.requests import Prompt, Request, Segment

__all__ = ["Watched", "fresh", "sent"]

_numbers = count(1)


@dataclass
class Watched:
    """A client that records the times of its answer, or of its loss."""

    first_token_at: float = -1.0
    lost_at: float = -1.0
    done_at: float = -1.0
    usage: Usage | None = None
    wrote_at: list[tuple[float, int]] = field(default_factory=list)
    events: Events | None = None

    def begun(self, cached_tokens: int) -> None:
        """Not recorded."""

    def wrote(self, tokens: int) -> None:
        assert self.events is not None
        self.wrote_at.append((self.events.time(), tokens))

    def first_token(self, now: float) -> None:
        self.first_token_at = now

    def lost(self, now: float) -> None:
        self.lost_at = now

    def done(self, usage: Usage, now: float) -> None:
        self.usage, self.done_at = usage, now

    @property
    def cached(self) -> int:
        """Number of its prompt tokens that were cached."""
        assert self.usage is not None
        return self.usage.cached_tokens


def fresh(tokens: int) -> Segment:
    """A text that no request has used before."""
    return Segment(next(_numbers), tokens)


def sent(engine: BatchingEngine, at: float, prompt: Prompt, answer: Segment | int = 10) -> Watched:
    """Schedule a request to ``engine`` at the time ``at``."""
    watched = Watched(events=engine.loop)
    text = fresh(answer) if isinstance(answer, int) else answer
    engine.loop.at(at, engine.submit, Request(next(_numbers), prompt, text), watched)
    return watched
