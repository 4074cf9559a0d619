"""How fast a backend reads prompts and writes answers, learned from what it has done. Pure: no clock, no I/O.

Reading is the median of the latest requests, each counting by its tokens: one that stalled changes nothing, and a real
change is the truth after half of them. Writing depends on how many streams share each step, so a line is fitted through
what was seen with few and with many; what lies far off it moves it by no more than what lies near.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

__all__ = ["Speeds", "fill_gaps"]

_LATEST = 15
_ENOUGH = 3  # requests before a backend is known: of less, the one that stalled would be all
_MOST_WEIGHT = 4096  # tokens of one request: a huge one is not more than half of all others
_SHORTEST = 1e-6  # seconds; what is said to have taken less was not measured
_GAIN = 1 / 8  # of each request in the line: 20 of them replace what was before them
_FARTHEST = 1.5  # times what the line says, or that part of it, is as far as one request counts
_ASTRAY = 4  # requests in a row that are farther off on the same side are no chance: it has changed

# While nothing is known of any backend these cancel out; a policy still needs numbers.
_READS_A_SECOND = 1000.0
_SECONDS_A_TOKEN = 0.02


class Speeds:
    """Of one backend.

    Attributes:
        step_seconds, stream_seconds: seconds for a token are the first, and the second for each stream that is
            written at the same time, its own included.
        writing_is_known: enough of its requests have told them.
    """

    __slots__ = (
        "_astray", "_count", "_latest", "_reads", "_reads_are_old", "_seconds", "_streams", "_streams_squared",
        "_streams_times_seconds", "_told", "step_seconds", "stream_seconds",
    )  # fmt: skip

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque(maxlen=_LATEST)  # tokens a second, and its weight
        self._told = 0
        self._reads = _READS_A_SECOND
        self._reads_are_old = False
        self.step_seconds = _SECONDS_A_TOKEN
        self.stream_seconds = 0.0
        self._astray = 0  # requests in a row that took much longer; below zero: much shorter
        # Sums over what was seen of writing, of which the older weigh less.
        self._count = self._streams = self._seconds = 0.0
        self._streams_squared = self._streams_times_seconds = 0.0

    @property
    def reads(self) -> float:
        """Tokens of prompts in a second; what is usual, as long as it is not known."""
        if self._reads_are_old:
            self._reads_are_old = False
            self._reads = _weighted_median(self._latest)
        return self._reads

    @property
    def is_known(self) -> bool:
        """Whether ``reads`` is its own."""
        return len(self._latest) >= _ENOUGH

    @property
    def writing_is_known(self) -> bool:
        """Whether ``step_seconds`` and ``stream_seconds`` are its own."""
        return self._told >= _ENOUGH

    def seconds_a_token(self, streams: float) -> float:
        """How long one token of each takes, while so many streams are written."""
        return self.step_seconds + self.stream_seconds * streams

    def note_reading(self, tokens: float, seconds: float) -> None:
        """It has read so many tokens that it did not have; the time until its first token, if it tells no better."""
        if tokens < 1 or seconds < _SHORTEST:
            return
        self._latest.append((tokens / seconds, min(tokens, _MOST_WEIGHT)))
        self._reads_are_old = self.is_known

    def note_writing(self, tokens: float, seconds: float, streams: float) -> None:
        """It has written so many tokens of one answer, with so many streams at a time on average."""
        if tokens < 1 or seconds < _SHORTEST:
            return
        taken = seconds / tokens
        if self.writing_is_known:
            taken = self._believed(taken, self.seconds_a_token(streams))
        self._told += 1
        rest = 1 - _GAIN
        if abs(self._astray) >= _ASTRAY:
            rest = 0.0
            self._astray = 0
        self._count = self._count * rest + 1
        self._streams = self._streams * rest + streams
        self._seconds = self._seconds * rest + taken
        self._streams_squared = self._streams_squared * rest + streams * streams
        self._streams_times_seconds = self._streams_times_seconds * rest + streams * taken
        if self.writing_is_known:
            self._fit()

    def take_usual(self, reads: float | None, writing: tuple[float, float] | None) -> None:
        """Be as others are, where nothing of its own is known; ``None``: nothing is known of others either."""
        if not self.is_known and reads is not None:
            self._reads = reads
        if not self.writing_is_known and writing is not None:
            self.step_seconds, self.stream_seconds = writing

    def _believed(self, taken: float, line: float) -> float:
        """``taken``, or as much of it as one request may tell against all before it."""
        if line / _FARTHEST <= taken <= line * _FARTHEST:
            self._astray = 0
            return taken
        is_longer = taken > line
        self._astray = max(self._astray, 0) + 1 if is_longer else min(self._astray, 0) - 1
        if abs(self._astray) >= _ASTRAY:
            return taken
        return line * _FARTHEST if is_longer else line / _FARTHEST

    def _fit(self) -> None:
        """The line of least squares, of which neither part is below zero."""
        streams, seconds = self._streams / self._count, self._seconds / self._count
        spread = self._streams_squared / self._count - streams * streams
        together = self._streams_times_seconds / self._count - streams * seconds
        # Where all came at about the same number, chance alone would tilt the line.
        slope = together / spread if spread > 0.01 * streams * streams else self.stream_seconds
        self.stream_seconds = max(0.0, min(slope, seconds / streams if streams else 0.0))
        self.step_seconds = max(0.0, seconds - self.stream_seconds * streams)


def fill_gaps(speeds: Iterable[Speeds]) -> None:
    """Let backends of which nothing is known yet be as the median of the others is."""
    backends = list(speeds)
    reads = [one.reads for one in backends if one.is_known]
    lines = [one for one in backends if one.writing_is_known]
    usual = (median(one.step_seconds for one in lines), median(one.stream_seconds for one in lines)) if lines else None
    for one in backends:
        one.take_usual(median(reads) if reads else None, usual)


def _weighted_median(rates: Iterable[tuple[float, float]]) -> float:
    ordered = sorted(rates)
    half = sum(weight for _, weight in ordered) / 2
    for rate, weight in ordered:
        half -= weight
        if half <= 0:
            return rate
    return ordered[-1][0]
