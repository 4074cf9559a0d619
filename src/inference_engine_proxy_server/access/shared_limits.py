"""Exchanges the limits of keys with the other processes, in the background. No request waits for it.

A report says how many permits were used, and how many are wanted next; the answer grants them. There is an exchange
every tenth of a second while a key is used, and sooner when its grant will soon be used up. While there is no answer,
each process goes on with its share of each limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from itertools import islice

from inference_engine_proxy_server.access.limit_exchange import LimitExchange
from inference_engine_proxy_server.access.shared_allowance import SharedAllowance
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError
from inference_engine_proxy_server.usage.spending import Spending

__all__ = ["SharedLimits"]

_ROUND_SECONDS = 0.1
_SILENT_SECONDS = 0.25  # without an answer, after which a process goes on alone until there is one
_LEAST_SECONDS = 0.01  # between two exchanges
_KEYS_AT_ONCE = 50  # in one exchange, which takes 2 ms of the server then


class SharedLimits:
    """The limits of all keys in this process.

    Args:
        state: the shared state.
        workers: processes of this replica: as many share a limit at least.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, state: SharedState, workers: int, clock: Callable[[], float]) -> None:
        self._state = state
        self._exchange = LimitExchange(state)
        self._workers = workers
        self._clock = clock
        self._active: dict[SharedAllowance, None] = {}
        self._hurried = asyncio.Event()
        self._exchanging: asyncio.Task[None] | None = None
        self._asked_at = self._continued_at = clock()
        state.on_return(self._hurried.set)

    @property
    def usual_share(self) -> float:
        """See :class:`~.shared_allowance.Coordinator`."""
        return 1 / max(len(self._state.members), self._workers)

    def new_allowance(self, key: ApiKey, now: float, spending: Spending) -> SharedAllowance:
        """The allowance of ``key``."""
        return SharedAllowance(key, now, spending, self)

    def activate(self, allowance: SharedAllowance) -> None:
        """See :class:`~.shared_allowance.Coordinator`."""
        self._active[allowance] = None
        self._hurried.set()

    def hurry(self) -> None:
        """See :class:`~.shared_allowance.Coordinator`."""
        self._hurried.set()

    async def run(self) -> None:
        """Exchange until cancelled, and once more then."""
        try:
            while True:
                await self._next_round()
                if self._exchanging is None and self._state.is_available:
                    self._asked_at = self._clock()
                    self._exchanging = asyncio.create_task(self._exchange_all())  # noqa: TID251 - it is awaited here
                await self._end_exchange(_ROUND_SECONDS)
                self._go_on_alone()
        finally:
            await self._end_exchange(None)
            await self._exchange_all(is_leaving=True)

    async def _next_round(self) -> None:
        if not self._active:
            await self._hurried.wait()
            self._continued_at = self._clock()
        await asyncio.sleep(_LEAST_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ROUND_SECONDS - _LEAST_SECONDS):
                await self._hurried.wait()
        self._hurried.clear()

    async def _end_exchange(self, seconds: float | None) -> None:
        """Wait until the exchange has ended; at most for ``seconds``, because the server may not answer."""
        if self._exchanging is None:
            return
        await asyncio.wait({self._exchanging}, timeout=seconds)
        if self._exchanging.done():
            ended, self._exchanging = self._exchanging, None
            ended.result()

    async def _exchange_all(self, *, is_leaving: bool = False) -> None:
        now = self._clock()
        allowances = iter([one for one in self._active if is_leaving or one.is_due(now)])
        try:
            while some := tuple(islice(allowances, _KEYS_AT_ONCE)):
                await self._exchange_some(some, is_leaving=is_leaving)
        except StateUnavailableError:
            return

    async def _exchange_some(self, allowances: Sequence[SharedAllowance], *, is_leaving: bool) -> None:
        now = self._clock()
        reports = [allowance.report(now, is_leaving=is_leaving) for allowance in allowances]
        answers = iter(await self._exchange.exchange([report for some in reports for report in some]))
        now = self._clock()
        for allowance, some in zip(allowances, reports, strict=True):
            allowance.take(tuple(islice(answers, len(some))), now)
            if allowance.rest(now):
                self._active.pop(allowance, None)

    def _go_on_alone(self) -> None:
        now = self._clock()
        seconds, self._continued_at = now - self._continued_at, now
        is_silent = self._exchanging is not None and now >= self._asked_at + _SILENT_SECONDS
        if is_silent or not self._state.is_available:
            for allowance in self._active:
                allowance.go_on_alone(seconds)
