"""The exchange of limits: what a process reports of each limit, and what the server grants it. One Lua script.

The server keeps one hash for each limit of a key: the level of its bucket, and for each process that uses it now how
much of the limit it was granted, how much it wanted, and how many requests a second it gets. A grant is part of the
level until it is used, so that all grants together never exceed the limit. The grants of a process that has not
reported for some seconds are void.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inference_engine_proxy_server.access.bucket import WINDOW_SECONDS
from inference_engine_proxy_server.state.shared_state import SharedState

__all__ = ["REQUESTS", "SLOTS", "TOKENS", "LimitAnswer", "LimitExchange", "LimitReport"]

REQUESTS, TOKENS, SLOTS = "requests", "tokens", "slots"
"""The kinds of limits: requests per minute, tokens per minute, and requests at a time."""

_GRANT_SECONDS = 3.0  # for which a grant holds; it is renewed at least once a second
_KEPT_SECONDS = 2 * WINDOW_SECONDS  # of a bucket that nobody uses; it is full again by then

# KEYS: the hashes. ARGV: this process, milliseconds of a grant, milliseconds for which a bucket is kept; then for each
# hash: kind, size, used, want, rate, level if the server knows none.
_SCRIPT = """\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local me, ends_at = 'm:' .. ARGV[1], now + ARGV[2]
local answers = {}
for number, key in ipairs(KEYS) do
  local first = 4 + (number - 1) * 6
  local kind, size, used = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local want, rate, level = tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4]), tonumber(ARGV[first + 5])
  local at, granted_to_others, wanted, rates, members = now, 0, want, rate, 1
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'level' then level = tonumber(value)
    elseif name == 'at' then at = tonumber(value)
    elseif name ~= me then
      local until_ms, its_grant, its_want, its_rate = value:match('(%S+) (%S+) (%S+) (%S+)')
      if tonumber(until_ms) <= now then
        redis.call('HDEL', key, name)
      else
        granted_to_others = granted_to_others + its_grant
        wanted, rates, members = wanted + its_want, rates + its_rate, members + 1
      end
    end
  end
  if kind == 'slots' then
    level = size
  else
    level = math.min(size, level + math.max(0, now - at) * size / 60000) - used
    redis.call('HSET', key, 'level', string.format('%.4f', level), 'at', string.format('%.0f', now))
  end
  local grant, share = 0, rates > 0 and rate / rates or 1 / members
  if kind ~= 'tokens' and want > 0 then
    local fair = wanted > level and math.floor(level * want / wanted) or want
    grant = math.max(0, math.min(want, math.max(1, fair), math.floor(level - granted_to_others)))
  end
  if kind == 'slots' then grant = math.max(grant, used) end
  if want > 0 then
    redis.call('HSET', key, me, string.format('%.0f %.0f %.0f %.4f', ends_at, grant, want, rate))
  else
    redis.call('HDEL', key, me)
  end
  redis.call('PEXPIRE', key, kind == 'slots' and ARGV[2] or ARGV[3])
  answers[number] = string.format('%.0f %.4f %.4f %.6f', grant, level - granted_to_others - grant, level, share)
end
return answers
"""


class LimitReport(NamedTuple):
    """What a process reports of one limit.

    Attributes:
        name: of the limit, such as ``requests:alice:600``.
        kind: of the limit.
        size: the limit.
        used: since the last report that was answered; of slots: the requests in progress.
        want: how much it wants to be granted; 0 if it does not need the limit for now.
        rate: requests a second for the key, also those that were rejected.
        level: what is left of the limit, as far as this process knows.
    """

    name: str
    kind: str
    size: int
    used: float
    want: int
    rate: float
    level: float


class LimitAnswer(NamedTuple):
    """What the server answers to one report.

    Attributes:
        granted: may be used here. Nothing of tokens: they are not divided, because it is not known how many a request
            will use.
        spare: granted to nobody; negative if more was used than granted.
        level: what is left of the limit for all processes together, grants included.
        share: this process's part of the requests for the key, from 0 to 1.
    """

    granted: int
    spare: float
    level: float
    share: float


class LimitExchange:
    """Sends reports of one process.

    Args:
        state: the shared state.
    """

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self._script = state.script(_SCRIPT)

    async def exchange(self, reports: Sequence[LimitReport]) -> list[LimitAnswer]:
        """The answers to ``reports``, in their order; raises ``StateUnavailableError``."""
        names = [self._state.key(report.name) for report in reports]
        values: list[str | float] = [self._state.member, int(_GRANT_SECONDS * 1000), int(_KEPT_SECONDS * 1000)]
        for report in reports:
            values += report[1:]
        answers = await self._state.call(lambda: self._script(names, values))
        return [_answer(answer) for answer in answers]


def _answer(text: bytes) -> LimitAnswer:
    granted, spare, level, share = map(float, text.split())
    return LimitAnswer(int(granted), spare, level, share)
