"""One process's part of a limit that all processes share. No I/O: :mod:`.shared_limits` reports and brings answers."""

from __future__ import annotations

import math

from inference_engine_proxy_server.access.bucket import WINDOW_SECONDS
from inference_engine_proxy_server.access.limit_exchange import LimitAnswer

__all__ = ["SharedBucket", "SharedSlots"]

_NEVER = -math.inf


class SharedBucket:
    """A part of a limit per minute; used like :class:`~.bucket.LocalBucket`.

    With answers, ``left`` is what was granted, or, of tokens, what is left for all. Without them, it is this process's
    share of that, and grows by its share of the limit: the shares of all processes that use the key sum to one.

    Args:
        size: the limit.
        share: part of the limit until the first answer, from 0 to 1.
        now: a reading of the clock.
        is_divided: whether each process may only use what it was granted. Else all of them use what is left.

    Attributes:
        size: the limit.
        left: may be used here.
        low: below this, more should be asked for at once.
    """

    __slots__ = (
        "_accrued",
        "_at",
        "_is_alone",
        "_is_divided",
        "_level",
        "_new",
        "_reported",
        "_share",
        "_spare",
        "left",
        "low",
        "size",
    )

    def __init__(self, size: int, share: float, now: float, *, is_divided: bool) -> None:
        self.size = size
        self.left = size * share
        self.low = _NEVER
        self._is_divided = is_divided
        self._is_alone = False
        self._share = share
        self._spare = 0.0
        self._level = float(size)  # of all processes together, at the time of the last answer
        self._at = now
        self._new = self._reported = 0.0  # used since the last report, and in reports that were not answered
        self._accrued = 0.0  # since the last answer

    def level(self, _now: float) -> float:
        """What may be used here; negative after use beyond the limit."""
        return self.left

    def use(self, amount: float, _now: float) -> None:
        """Use ``amount``."""
        self.left -= amount
        self._new += amount

    @property
    def has_news(self) -> bool:
        """Whether the server does not know of all use."""
        return self._new > 0 or self._reported > 0

    def level_before_use(self, now: float) -> float:
        """What is left for all processes together, as the server knew it last, without what was used here since."""
        return min(self._level + (now - self._at) * self.size / WINDOW_SECONDS, float(self.size))

    def known_level(self, now: float) -> float:
        """What is left for all processes together, as far as it is known; without answers, what is left here."""
        if self._is_alone:
            return self.left
        level = self._level + (now - self._at) * self.size / WINDOW_SECONDS
        if level > self.size:  # every reply shows the level, and min() would be a further call
            level = self.size
        return level - self._new - self._reported

    def reading(self, now: float) -> tuple[int, int, int]:
        """The limit, what is left for all processes together, and the seconds until nothing is used."""
        level, size = self.known_level(now), self.size
        return size, int(level) if level > 0 else 0, math.ceil((size - level) * WINDOW_SECONDS / size)

    def seconds_until(self, level: float, now: float) -> float:
        """The seconds until all processes together have ``level``."""
        return max(0.0, (level - self.known_level(now)) * WINDOW_SECONDS / self.size)

    def begin_report(self) -> float:
        """What was used since the last answer, of which the server must know.

        The server lets a bucket grow to its size only. What grew here beyond that, without answers, and was used, is
        nothing that the server has counted as left.
        """
        self._reported += self._new
        self._new = 0.0
        return max(0.0, self._reported - max(0.0, self._accrued - self._share * self.size))

    def take(self, answer: LimitAnswer, wanted: int, now: float) -> None:
        """Go on with ``answer`` to the last report, which asked for ``wanted``."""
        self._level, self._at, self._share, self._spare = answer.level, now, answer.share, answer.spare
        self._reported = self._accrued = 0.0
        self._is_alone = False
        self.left = (answer.granted if self._is_divided else answer.level) - self._new
        can_gain = self._is_divided and (answer.spare >= 1 or answer.granted >= wanted)
        self.low = answer.granted / 2 if can_gain else _NEVER

    def begin_use(self, share: float, now: float) -> None:
        """The key is used again after a pause, in which there were no reports."""
        self._share, self._spare = share, 0.0
        level = self.known_level(now)
        self.left = max(level * share, min(level, 1.0))

    def go_on_alone(self, seconds: float) -> None:
        """There has been no answer for ``seconds`` more."""
        if not self._is_alone:
            self._is_alone, self.low = True, _NEVER
            if self._is_divided:
                self.left += self._share * max(0.0, self._spare)
            elif self.left > 0:
                self.left *= self._share
        part = self._share * self.size
        more = min(part * seconds / WINDOW_SECONDS, max(0.0, max(1.0, part) - self.left))
        self.left += more
        self._accrued += more


class SharedSlots:
    """A part of a limit of requests at a time.

    Args:
        size: the limit.
        share: part of the limit until the first answer, from 0 to 1.

    Attributes:
        size: the limit.
        most: requests that may be in progress here.
        high: from so many on, more should be asked for at once.
    """

    __slots__ = ("_is_alone", "_share", "_spare", "high", "most", "size")

    def __init__(self, size: int, share: float) -> None:
        self.size = size
        self.high = math.inf
        self._is_alone = False
        self.begin_use(share)

    def take(self, answer: LimitAnswer, wanted: int, in_flight: int) -> None:
        """Go on with ``answer`` to the last report, which asked for ``wanted``."""
        self.most, self._spare, self._share = answer.granted, answer.spare, answer.share
        self._is_alone = False
        can_gain = answer.spare >= 1 or answer.granted >= wanted
        self.high = max(in_flight + 1, (in_flight + answer.granted + 1) // 2) if can_gain else math.inf

    def begin_use(self, share: float) -> None:
        """The key is used again after a pause, in which there were no reports."""
        self._share, self._spare = share, 0.0
        self.most = max(1, int(self.size * share))

    def go_on_alone(self) -> None:
        """There has been no answer for a while: this process's share of the free slots is added."""
        if not self._is_alone:
            self._is_alone, self.high = True, math.inf
            self.most += int(self._share * max(0.0, self._spare) + 0.5)
