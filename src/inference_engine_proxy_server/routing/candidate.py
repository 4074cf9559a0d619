"""A backend as routing sees it: the backend itself, and what routing stores about it."""

from __future__ import annotations

import math
from typing import Protocol

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.conversation import key_of
from inference_engine_proxy_server.routing.balancer import LAST_CHOICE, TIER
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingWork
from inference_engine_proxy_server.routing.foreign_trend import ForeignTrend, Report

__all__ = ["Candidate"]


class _RankTable(Protocol):
    @property
    def ranks(self) -> list[float]: ...

    def set_cost(self, at: int, cost: float) -> None: ...


class Candidate:
    """One backend that may be chosen.

    Args:
        backend: the backend.
        number: its number in the prefix index.
        tier_penalty_seconds: what each tier above the first adds to :attr:`tier_seconds`.

    Attributes:
        load: the backend's requests.
        url_key: 64-bit hash of its URL, the same in all replicas of the proxy.
        work: its pending work: prompts and answers of requests from this proxy.
        tier_seconds: how much longer a request waits for a backend of the first tier, if its policy knows expected
            times.
        cost: weight of one request: 1 for a backend of weight 1 in good health, more for a smaller share.
        report: the requests that it last reported; ``None`` before that.
    """

    __slots__ = (
        "_change",
        "_handicap",
        "_positions",
        "_tables",
        "_trend",
        "backend",
        "cost",
        "load",
        "number",
        "report",
        "tier_penalty_seconds",
        "tier_seconds",
        "url_key",
        "work",
    )  # fmt: skip

    def __init__(self, backend: Backend, number: int, tier_penalty_seconds: float = 0.0) -> None:
        self.backend = backend
        self.load = backend.load
        self.number = number
        self.url_key = key_of(backend.url.encode())
        self.work = PendingWork()
        self.cost = 1.0
        self.tier_penalty_seconds = tier_penalty_seconds
        self.tier_seconds = 0.0
        self.report: Report | None = None
        self._change = 0.0  # of its foreign requests since that report, as expected
        self._trend: ForeignTrend | None = None  # while backends have foreign requests
        self._handicap = math.inf  # added to the rank by load; infinite while the backend is out of rotation
        self._tables: list[tuple[_RankTable, int]] = []
        self._positions: list[tuple[list[float], int, float]] = []  # ranks of these tables, and what they contain more

    def __repr__(self) -> str:
        return f"<Candidate {self.number} cost={self.cost:g} of {self.backend!r}>"

    @property
    def config(self) -> BackendConfig:
        """Configuration of the backend."""
        return self.backend.config

    @property
    def whole(self) -> Candidate:
        """The candidate for the backend as a whole, if this is one for a single model of it."""
        return self

    @property
    def has_slot(self) -> bool:
        """Whether the backend is not full."""
        return self.load.total < self.load.limit

    @property
    def is_admitted(self) -> bool:
        """Whether it may get requests at all, slots aside. Only models that take turns may not."""
        return True

    def rank(self) -> float:
        """The rank by load, whether or not the backend is full or in rotation: the lowest goes first."""
        return (self.load.total + self._change) * self.cost + self._usual_handicap()

    def review(self, now: float) -> None:
        """Update cost, tier and rank from the backend's state; ``now`` is a reading of the clock."""
        backend = self.backend
        self.tier_seconds = (backend.config.tier - 1) * self.tier_penalty_seconds
        self.cost = 1 / (backend.config.weight * backend.health.share(now))
        for table, at in self._tables:
            table.set_cost(at, self.cost)
        self.review_rotation()

    def review_rotation(self) -> None:
        """Update the rank after the backend entered or left the rotation."""
        self._update_handicap()
        self.rerank()

    def _update_handicap(self) -> None:
        # The expected change decides who goes first, but not who is full: only reports can say that.
        expected = self._change * self.cost
        self._handicap = self._usual_handicap() + expected if self.backend.takes_requests else math.inf

    def _usual_handicap(self) -> float:
        return (self.backend.config.tier - 1) * TIER + (LAST_CHOICE if self.backend.is_last_choice else 0.0)

    def rerank(self) -> None:
        """Update the rank in all rank tables; called whenever a lease begins or ends."""
        if self._trend is not None:
            self._expect_change(self._trend)
        load = self.load
        total = load.leases + load.others  # load.total, inlined: this runs twice for each request
        rank = total * self.cost + self._handicap if total < load.limit else math.inf
        for ranks, at, handicap in self._positions:
            ranks[at] = rank + handicap

    def adopt_report(self, trend: ForeignTrend, now: float) -> None:
        """The backend has reported its load; ``trend`` learns from that."""
        load = self.load
        report = Report(load.foreign, load.proxy_leases, now)
        trend.learn(self.report, report)
        self.report = report
        self._trend = trend if trend.is_active else None
        self._change = 0.0

    def _expect_change(self, trend: ForeignTrend) -> None:
        """Estimate what other replicas have sent since the latest report."""
        load, report = self.load, self.report
        change = 0.0 if report is None else max(-load.foreign, trend.change(report, load.proxy_leases))
        if change != self._change:
            self._change = change
            self._update_handicap()

    def recount(self) -> None:
        """Count the requests of other workers, which change without notice, and update the rank if they have."""
        load = self.load
        before = load.others
        load.count_others()
        if load.others != before:
            self.rerank()

    def doubt(self, trend: ForeignTrend, now: float) -> float:
        """The usual error of its rank, as it does not know what other replicas have sent since its latest report."""
        return 0.0 if self.report is None else trend.error(self.report, now) * self.cost

    def join(self, table: _RankTable, at: int, handicap: float) -> None:
        """Keep position ``at`` of ``table`` up to date until :meth:`leave_all`, with ``handicap`` added to the rank."""
        self._tables.append((table, at))
        self._positions.append((table.ranks, at, handicap))
        self.rerank()

    def leave_all(self) -> None:
        """Forget all rank tables."""
        self._tables.clear()
        self._positions.clear()
