"""The allowance of a key whose limits hold for all processes of all replicas together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from inference_engine_proxy_server.access.allowances import Allowance
from inference_engine_proxy_server.access.bucket import Bucket
from inference_engine_proxy_server.access.limit_exchange import REQUESTS, SLOTS, TOKENS, LimitAnswer, LimitReport
from inference_engine_proxy_server.access.shared_bucket import SharedBucket, SharedSlots
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.usage.spending import Spending

__all__ = ["Coordinator", "SharedAllowance"]

_RATE_SECONDS = 5.0  # over which the rate of requests is averaged
_IDLE_SECONDS = 1.0  # without a request, after which a key needs no grants
_RENEWAL_SECONDS = 0.5  # between reports of a key without requests
_FIRST_SECONDS = 0.1  # that the first report after a pause is taken to cover


class Coordinator(Protocol):
    """Exchanges the reports of allowances."""

    @property
    def usual_share(self) -> float:
        """The part of a limit for a process of which nothing else is known."""

    def activate(self, allowance: SharedAllowance) -> None:
        """Exchange reports of ``allowance`` until it is idle."""

    def hurry(self) -> None:
        """Exchange reports at once."""


class SharedAllowance(Allowance):
    """As :class:`Allowance`; its limits are a part of the limits of the key.

    Args:
        key: the key.
        now: a reading of the clock.
        spending: what keys have used of their budgets.
        coordinator: exchanges the reports of this allowance.
    """

    __slots__ = (
        "_asked",
        "_attempted_at",
        "_attempts",
        "_coordinator",
        "_had_attempts",
        "_is_active",
        "_rate",
        "_reported_at",
        "_slots",
    )

    _requests: SharedBucket | None
    _tokens: SharedBucket | None

    def __init__(self, key: ApiKey, now: float, spending: Spending, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._is_active = False
        self._attempts = 0  # since the last report
        self._had_attempts = False  # in the last report
        self._attempted_at = self._reported_at = now
        self._rate = 0.0
        self._asked: list[tuple[SharedBucket | SharedSlots, int]] = []  # what the last report asked for
        self._slots: SharedSlots | None = None
        super().__init__(key, now, spending)
        self._set_slots()

    def change(self, key: ApiKey, now: float) -> None:
        """See :meth:`Allowance.change`."""
        before = self.key.concurrent_requests
        super().change(key, now)
        if key.concurrent_requests != before:
            self._set_slots()
        elif self._slots is not None:
            self.most_at_once = self._slots.most

    def bucket(self, unit: str, size: int | None, now: float) -> Bucket | None:
        """See :meth:`Allowance.bucket`."""
        if size is None:
            return None
        return SharedBucket(size, self._coordinator.usual_share, now, is_divided=unit == REQUESTS)

    def begin(self, now: float) -> None:
        """See :meth:`Allowance.begin`."""
        self._attempts += 1
        if not self._is_active:
            self._activate(now)
        super().begin(now)
        requests, slots = self._requests, self._slots
        if (requests is not None and requests.left < requests.low) or (
            slots is not None and self.in_flight >= slots.high
        ):
            self._coordinator.hurry()

    def left(self, now: float) -> dict[str, int | None]:
        """``requests_left`` and ``tokens_left`` for all processes together; ``None`` without such a limit."""
        return {
            "requests_left": None if self._requests is None else int(self._requests.known_level(now)),
            "tokens_left": None if self._tokens is None else int(self._tokens.known_level(now)),
        }

    def report(self, now: float, *, is_leaving: bool = False) -> list[LimitReport]:
        """One report for each limit.

        Args:
            now: a reading of the clock.
            is_leaving: whether this process needs no grants any more.
        """
        attempts, self._attempts = self._attempts, 0
        self._count(attempts, now)
        is_idle = is_leaving or now >= self._attempted_at + _IDLE_SECONDS
        in_flight = 0 if is_leaving else self.in_flight
        self._asked = []
        reports = []
        for kind, bucket in ((REQUESTS, self._requests), (TOKENS, self._tokens)):
            if bucket is not None:
                want = 0 if is_idle else 1 if kind == TOKENS else self._wanted(bucket.size, attempts, self._rate)
                level = bucket.level_before_use(now)
                reports.append(self._report(kind, bucket.size, bucket.begin_report(), want, level))
                self._asked.append((bucket, want))
        if self._slots is not None:
            size = self._slots.size
            want = in_flight if is_idle else min(size, in_flight + self._wanted(size, attempts, 0))
            reports.append(self._report(SLOTS, size, in_flight, want, size))
            self._asked.append((self._slots, want))
        return reports

    def take(self, answers: Sequence[LimitAnswer], now: float) -> None:
        """Go on with the answers to the last reports. A limit that has changed meanwhile begins anew."""
        for (part, want), answer in zip(self._asked, answers, strict=True):
            if isinstance(part, SharedSlots):
                part.take(answer, want, self.in_flight)
            else:
                part.take(answer, want, now)
        if self._slots is not None:
            self.most_at_once = self._slots.most

    def is_due(self, now: float) -> bool:
        """Whether there is something to report, or grants must be renewed."""
        return (
            bool(self._attempts) or self._had_attempts or self._has_news or now >= self._reported_at + _RENEWAL_SECONDS
        )

    def rest(self, now: float) -> bool:
        """Whether there is nothing to report until the next request."""
        needs_nothing = not any(want for _, want in self._asked) and now >= self._attempted_at + _IDLE_SECONDS
        if needs_nothing and self._attempts:  # meanwhile
            self._begin_use(now)
            self._coordinator.hurry()
        elif needs_nothing and not self.in_flight and not self._has_news:
            self._is_active = False
        return not self._is_active

    def go_on_alone(self, seconds: float) -> None:
        """Let the limits grow by this process's share: there has been no answer for ``seconds`` more."""
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.go_on_alone(seconds)
        if self._slots is not None:
            self._slots.go_on_alone()
            self.most_at_once = self._slots.most

    @property
    def _has_news(self) -> bool:
        return any(bucket is not None and bucket.has_news for bucket in (self._requests, self._tokens))

    def _wanted(self, size: int, attempts: int, rate: float) -> int:
        """How much of a limit is wanted: twice what the latest requests needed, at least an eighth of an equal part.

        Args:
            size: the limit.
            attempts: requests since the last report.
            rate: permits that are needed in a second, if there are requests at all.
        """
        least = max(1, int(size * self._coordinator.usual_share / 8))
        return min(size, max(least, 2 * attempts, math.ceil(rate) if attempts else 0))

    def _report(self, kind: str, size: int, used: float, want: int, level: float) -> LimitReport:
        return LimitReport(f"{kind}:{self.key.name}:{size}", kind, size, used, want, self._rate, level)

    def _activate(self, now: float) -> None:
        """Begin to use the key, after a pause or for the first time."""
        if self._requests is None and self._tokens is None and self._slots is None:
            return
        self._is_active = True
        self._attempted_at = now
        self._reported_at = max(self._reported_at, now - _FIRST_SECONDS)
        self._begin_use(now)
        self._coordinator.activate(self)

    def _begin_use(self, now: float) -> None:
        share = self._coordinator.usual_share
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.begin_use(share, now)
        if self._slots is not None:
            self._slots.begin_use(share)
            self.most_at_once = self._slots.most

    def _count(self, attempts: int, now: float) -> None:
        """Keep the rate of requests up to date."""
        seconds = now - self._reported_at
        self._had_attempts = attempts > 0
        if attempts:
            self._attempted_at = now
        if seconds > 0:
            self._rate += (1 - math.exp(-seconds / _RATE_SECONDS)) * (attempts / seconds - self._rate)
            self._reported_at = now

    def _set_slots(self) -> None:
        size = self.key.concurrent_requests
        self._slots = None if size is None else SharedSlots(size, self._coordinator.usual_share)
        self.most_at_once = None if self._slots is None else self._slots.most
