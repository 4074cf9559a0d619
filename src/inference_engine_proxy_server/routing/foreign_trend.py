"""Estimates what other senders, above all replicas of this proxy, have sent to backends since their latest reports.

Replicas see the same reports and follow the same rule, so they fill the same backend at the same time. A replica that
counts only its own requests notices that in the next report. How many foreign requests come and go with each of ours is
therefore learned from successive reports; it is close to 0 if the other senders are no replicas. Pure: no clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["ForeignTrend", "Report"]

_GAIN = 1 / 64  # weight of each report
_MUCH = 0.01  # mean foreign requests of a backend: fewer are polls that saw an answer of ours which had just ended
_DOUBT = 0.1  # added to the sum of squares, so that few reports prove little
_LEAST_SECONDS = 0.1  # between two reports of a backend


class Report(NamedTuple):
    """What a backend reported.

    Attributes:
        foreign: its requests that did not come through this proxy.
        own: its requests through this proxy.
        at: when it reported them, a reading of the clock.
    """

    foreign: float
    own: int
    at: float


class ForeignTrend:
    """How the foreign requests of the backends change from report to report.

    Attributes:
        is_active: the backends have foreign requests.
        follow: how many foreign requests come for each of ours; 0 or more.
    """

    __slots__ = ("_count", "_foreign", "_products", "_squares", "_variance", "follow", "is_active")

    def __init__(self) -> None:
        self.is_active = False
        self.follow = 0.0
        self._count = 0
        self._foreign = self._products = self._squares = 0.0  # moving averages
        self._variance = 0.0  # per second, of the changes that ``follow`` does not explain

    def __repr__(self) -> str:
        return f"<ForeignTrend active={self.is_active} follow={self.follow:.2f} variance={self._variance:.2f}>"

    def learn(self, before: Report | None, report: Report) -> None:
        """A backend has sent ``report``; its previous one was ``before``."""
        self._count += 1
        gain = max(_GAIN, 1 / self._count)
        self._foreign += gain * (report.foreign - self._foreign)
        self.is_active = self._foreign > _MUCH
        if before is None or report.at <= before.at:
            return
        own, foreign = report.own - before.own, report.foreign - before.foreign
        surprise = foreign - self.change(before, report.own)
        seconds = max(_LEAST_SECONDS, report.at - before.at)
        self._variance += gain * (surprise * surprise / seconds - self._variance)
        # The slope of a line through 0 by least squares.
        self._products += gain * (own * foreign - self._products)
        self._squares += gain * (own * own - self._squares)
        self.follow = max(0.0, self._products / (self._squares + _DOUBT))

    def change(self, report: Report, own: int) -> float:
        """The expected change of the foreign requests since ``report``, now that the backend has ``own`` of ours."""
        return max(-report.foreign, self.follow * (own - report.own))

    def error(self, report: Report, now: float) -> float:
        """The usual error of the expected foreign requests, in requests: 0 at the moment of the report."""
        return math.sqrt(self._variance * max(0.0, now - report.at))
