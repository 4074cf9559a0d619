"""How fast a backend reads prompts and writes answers, learned from its requests. Pure: no clock, no I/O.

The reading speed is the median over the latest requests, weighted by their tokens: one stalled request changes nothing,
and a real change takes effect after half of them. The time to write a token depends on how many streams share each
step, so a line is fitted to measurements at different concurrencies; outliers are clipped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

__all__ = ["Speeds", "fill_gaps"]

_LATEST = 15
_MANY = 5  # requests until a backend may count as slower or faster than the others
_LIKE = 1.6  # speeds that differ by less than this factor count as equal
_ENOUGH = 3  # requests until a speed counts as known: with fewer, one stalled request would dominate
_MOST_WEIGHT = 4096  # tokens; caps the weight of one huge request
_SHORTEST = 1e-6  # seconds; shorter times are not real measurements
_GAIN = 1 / 8  # weight of each new request in the line: 20 requests replace all earlier ones
_FARTHEST = 1.5  # measurements are clipped to the line's value times this factor, or divided by it
_ASTRAY = 4  # this many outliers in a row on the same side are not chance: the speed has changed

# While no backend's speed is known, these defaults cancel out, but a policy still needs numbers.
_READS_A_SECOND = 1000.0
_SECONDS_A_TOKEN = 0.02


class Speeds:
    """The speeds of one backend.

    Attributes:
        least_reads: the highest lower bound of the reading speed, for the time until it is measured; 0 without one.
        step_seconds, stream_seconds: a token takes ``step_seconds``, plus ``stream_seconds`` for each concurrent
            stream, including its own.
    """

    __slots__ = (
        "_astray", "_count", "_latest", "_reads", "_reads_are_old", "_seconds", "_streams", "_streams_squared",
        "_streams_times_seconds", "_writings", "least_reads", "step_seconds", "stream_seconds",
    )  # fmt: skip

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque(maxlen=_LATEST)  # tokens per second, and the weight
        self._writings = 0
        self.least_reads = 0.0
        self._reads = _READS_A_SECOND
        self._reads_are_old = False
        self.step_seconds = _SECONDS_A_TOKEN
        self.stream_seconds = 0.0
        self._astray = 0  # number of consecutive outliers; positive if they took too long, negative if too short
        # Exponentially decaying sums over the writing measurements.
        self._count = self._streams = self._seconds = 0.0
        self._streams_squared = self._streams_times_seconds = 0.0

    @property
    def reads(self) -> float:
        """Reading speed, in prompt tokens per second; a default while unknown."""
        if self._reads_are_old:
            self._reads_are_old = False
            self._reads = _weighted_median(self._latest)
        return self._reads

    @property
    def is_known(self) -> bool:
        """Whether ``reads`` was measured on this backend."""
        return len(self._latest) >= _ENOUGH

    @property
    def writing_is_known(self) -> bool:
        """Whether ``step_seconds`` and ``stream_seconds`` were measured on this backend."""
        return self._writings >= _ENOUGH

    def seconds_a_token(self, streams: float) -> float:
        """The time for one token of each stream, with ``streams`` concurrent streams."""
        return self.step_seconds + self.stream_seconds * streams

    def reading_slowness(self, usual: float) -> float | None:
        """How many times slower than ``usual`` it reads, in prompt tokens per second; 1 if that may be chance.

        The difference is real if it exceeds a factor of ``_LIKE`` and most of the latest measurements agree. ``None``
        after too few measurements.
        """
        if len(self._latest) < _MANY:
            return None
        slowness = usual / self.reads
        rates = sorted(rate for rate, _ in self._latest)
        lower, upper = rates[len(rates) // 4], rates[-1 - len(rates) // 4]
        return 1.0 if 1 / _LIKE < slowness < _LIKE or lower <= usual <= upper else slowness

    def writing_slowness(self, step: float, stream: float) -> float | None:
        """How many times slower than usual it writes; 1 if that may be chance, ``None`` if it was not measured.

        Args:
            step, stream: the usual ``step_seconds`` and ``stream_seconds``.
        """
        if not self.writing_is_known:
            return None
        usual = step + stream * self._streams / self._count  # at the concurrency of the measurements
        slowness = self._seconds / self._count / usual if usual else 1.0
        return 1.0 if 1 / _LIKE < slowness < _LIKE else slowness

    def note_reading(self, tokens: float, seconds: float) -> None:
        """Add a measurement of reading.

        Args:
            tokens: prompt tokens that were read, without cached ones.
            seconds: reading time reported by the engine, or else the time until the first token.
        """
        if tokens < 1 or seconds < _SHORTEST:
            return
        self._latest.append((tokens / seconds, min(tokens, _MOST_WEIGHT)))
        self._reads_are_old = self.is_known

    def note_least_reading(self, tokens: float, seconds: float) -> None:
        """Add a lower bound: ``tokens`` of several prompts were read within ``seconds``, perhaps with pauses."""
        if tokens >= 1 and seconds >= _SHORTEST:
            self.least_reads = max(self.least_reads, tokens / seconds)

    def note_writing(self, tokens: float, seconds: float, streams: float) -> None:
        """Add a measurement of writing.

        Args:
            tokens: tokens of one answer.
            seconds: the time that they took.
            streams: average number of concurrent streams meanwhile.
        """
        if tokens < 1 or seconds < _SHORTEST:
            return
        a_token = seconds / tokens
        if self.writing_is_known:
            a_token = self._clipped(a_token, self.seconds_a_token(streams))
        self._writings += 1
        decay = 1 - _GAIN
        if abs(self._astray) >= _ASTRAY:
            decay = 0.0
            self._astray = 0
        self._count = self._count * decay + 1
        self._streams = self._streams * decay + streams
        self._seconds = self._seconds * decay + a_token
        self._streams_squared = self._streams_squared * decay + streams * streams
        self._streams_times_seconds = self._streams_times_seconds * decay + streams * a_token
        if self.writing_is_known:
            self._fit()

    def take_usual(self, reads: float | None, writing: tuple[float, float] | None) -> None:
        """Use the given speeds where none was measured; ``None`` if the fleet's speed is unknown as well.

        Args:
            reads: reading speed.
            writing: ``step_seconds`` and ``stream_seconds``.
        """
        if not self.is_known and reads is not None:
            self._reads = reads
        if not self.writing_is_known and writing is not None:
            self.step_seconds, self.stream_seconds = writing

    def _clipped(self, measured: float, expected: float) -> float:
        """``measured``, clipped to ``_FARTHEST`` times the expected value unless several outliers came in a row."""
        if expected / _FARTHEST <= measured <= expected * _FARTHEST:
            self._astray = 0
            return measured
        is_longer = measured > expected
        self._astray = max(self._astray, 0) + 1 if is_longer else min(self._astray, 0) - 1
        if abs(self._astray) >= _ASTRAY:
            return measured
        return expected * _FARTHEST if is_longer else expected / _FARTHEST

    def _fit(self) -> None:
        """Fit the line by least squares, with both coefficients at least zero."""
        streams, seconds = self._streams / self._count, self._seconds / self._count
        variance = self._streams_squared / self._count - streams * streams
        covariance = self._streams_times_seconds / self._count - streams * seconds
        # If all measurements had about the same concurrency, their slope would be mere noise.
        slope = covariance / variance if variance > 0.01 * streams * streams else self.stream_seconds
        self.stream_seconds = max(0.0, min(slope, seconds / streams if streams else 0.0))
        self.step_seconds = max(0.0, seconds - self.stream_seconds * streams)


def fill_gaps(speeds: Iterable[Speeds]) -> None:
    """Give backends without measurements the median speeds of the others."""
    backends = list(speeds)
    reads = [one.reads for one in backends if one.is_known]
    reads = reads or [one.least_reads for one in backends if one.least_reads]
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
