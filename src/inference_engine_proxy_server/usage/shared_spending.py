"""The tokens that keys have used of their budgets, in all processes that share state.

Once a second, each process adds what it has counted to the server's sums, and learns them. A batch that was not
answered is sent again with its number, by which the server recognizes one that it has already added. A server that has
lost its data gets the sums back: they never fall below what a process has seen of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError
from inference_engine_proxy_server.usage.periods import day_of, month_of
from inference_engine_proxy_server.usage.spending import Spending, StoredTokens

__all__ = ["SharedSpending"]

_ROUND_SECONDS = 1.0
_KEYS_AT_ONCE = 200  # in one call, which takes about 2 ms of the server then
_KEPT_SECONDS = 32 * 86_400  # of a sum; a month is over by then
_NUMBER_SECONDS = 3600  # for which the number of a process's last batch is kept

# KEYS: number of this process's last batch, then one hash for each key. ARGV: number of this batch, day, month, seconds
# to keep the number and the sums; then for each key: tokens to add to day and month, and known sums of both.
_SCRIPT = """\
local number = tonumber(ARGV[1])
local is_new = number > tonumber(redis.call('GET', KEYS[1]) or '0')
redis.call('SET', KEYS[1], number, 'EX', ARGV[4])
local sums = {}
for index = 2, #KEYS do
  local first = 6 + (index - 2) * 4
  local found = redis.call('HMGET', KEYS[index], 'day', 'day_tokens', 'month', 'month_tokens')
  local totals = {}
  for at = 0, 1 do
    local period, more, known = tonumber(ARGV[2 + at]), tonumber(ARGV[first + at]), tonumber(ARGV[first + 2 + at])
    local stored, tokens = tonumber(found[1 + 2 * at] or '0'), tonumber(found[2 + 2 * at] or '0')
    if stored <= period then
      tokens = math.max(stored == period and tokens or 0, known) + (is_new and more or 0)
      local name = at == 0 and 'day' or 'month'
      redis.call('HSET', KEYS[index], name, ARGV[2 + at], name .. '_tokens', string.format('%.0f', tokens))
    else
      tokens = known + more
    end
    totals[at] = string.format('%.0f', tokens)
  end
  redis.call('EXPIRE', KEYS[index], ARGV[5])
  sums[index - 1] = totals[0] .. ' ' .. totals[1]
end
return sums
"""


@dataclass(slots=True)
class _Batch:
    """What is added to the sums.

    Attributes:
        day, month: see :mod:`~.periods`.
        more: tokens by the name of the key, of the day and the month; also keys without any, whose sums are read.
        sums: the answers so far.
    """

    day: int
    month: int
    more: Mapping[str, tuple[int, int]]
    sums: dict[str, tuple[int, int]] = field(default_factory=dict)


class SharedSpending:
    """Exchanges the spending of one process with the server.

    Args:
        state: the shared state.
        spending: what keys use of their budgets in this process.
    """

    def __init__(self, state: SharedState, spending: Spending) -> None:
        self._state = state
        self._spending = spending
        self._script = state.script(_SCRIPT)
        self._batch: _Batch | None = None  # that was not answered, or not completely
        self._number = 0  # of the next part of a batch
        self._returned = asyncio.Event()
        state.on_return(self._returned.set)

    async def run(self) -> None:
        """Exchange once a second until cancelled, and once more then."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ROUND_SECONDS):
                        await self._returned.wait()
                self._returned.clear()
                await self._exchange()
        finally:
            await self._exchange()

    async def _exchange(self) -> None:
        if not self._spending.has_keys or not self._state.is_available:
            return
        if self._batch is None:
            now = self._spending.now()
            self._batch = _Batch(day_of(now), month_of(now), self._spending.begin_writing())
        batch = self._batch
        try:
            while rest := tuple(islice((key for key in batch.more if key not in batch.sums), _KEYS_AT_ONCE)):
                await self._add(batch, rest)
        except StateUnavailableError:
            return
        self._batch = None
        # Keys that began to be used meanwhile keep the sums of the usage file.
        sums = {**self._spending.stored(batch.day, batch.month), **batch.sums}
        self._spending.end_writing(StoredTokens(batch.day, batch.month, sums))

    async def _add(self, batch: _Batch, keys: Iterable[str]) -> None:
        """Add a part of ``batch``. Its number is the same when it is sent again, because the keys are."""
        stored = self._spending.stored(batch.day, batch.month)
        names = [self._state.key("batch", self._state.member)]
        values = [self._number + 1, batch.day, batch.month, _NUMBER_SECONDS, _KEPT_SECONDS]
        for key in keys:
            names.append(self._state.key("budget", key))
            values += [*batch.more[key], *stored.get(key, (0, 0))]
        sums = await self._state.call(lambda: self._script(names, values))
        self._number += 1
        for key, text in zip(keys, sums, strict=True):
            of_day, of_month = map(int, text.split())
            batch.sums[key] = of_day, of_month
