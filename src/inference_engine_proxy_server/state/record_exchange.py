"""The exchange of records with the server, and so with all other members."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial

from inference_engine_proxy_server.state.broadcast import Broadcast, Receiver
from inference_engine_proxy_server.state.records import KEPT_SECONDS, Records
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError

__all__ = ["RecordExchange"]

_TOPIC = "records"
_EXCHANGE_SECONDS = 5.0  # messages can be lost
_MOST_AT_ONCE = 500

# Both scripts return the time of the server first: seconds, and microseconds.
# KEYS: the records, their version. ARGV: the version that the caller has read, the seconds after which unused keys
# expire. Returns the version, and all names and records if it is another one.
_READ = """\
local time = redis.call('TIME')
local version = redis.call('GET', KEYS[2]) or ''
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
if version == ARGV[1] then return {time[1], time[2], version} end
return {time[1], time[2], version, redis.call('HGETALL', KEYS[1])}
"""
# KEYS: the same. ARGV: the channel, then names and records. Stores and publishes the later ones.
_WRITE = """\
local time, later = redis.call('TIME'), {}
for at = 2, #ARGV, 2 do
  local one = cjson.decode(ARGV[at + 1])
  local is_readable, other = pcall(cjson.decode, redis.call('HGET', KEYS[1], ARGV[at]) or '')
  is_readable = is_readable and type(other) == 'table' and tonumber(other[1]) and tonumber(other[2])
  if not is_readable or one[1] > other[1] or (one[1] == other[1] and one[2] > other[2]) then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
    table.insert(later, {ARGV[at], ARGV[at + 1]})
  end
end
if #later > 0 then
  redis.call('SET', KEYS[2], time[1] .. '000000', 'NX')
  redis.call('INCR', KEYS[2])
  redis.call('PUBLISH', ARGV[1], cjson.encode(later))
end
return {time[1], time[2]}
"""

logger = logging.getLogger(__name__)


class RecordExchange:
    """Reads what others have written, and sends what they lack.

    Args:
        records: of this member.
        state: the shared state.
        broadcast: its messages; this object must be made before they are received.
    """

    def __init__(self, records: Records, state: SharedState, broadcast: Broadcast) -> None:
        self._records = records
        self._state = state
        self._version = b"-"  # that was read last
        self._keys = [state.key("records"), state.key("records", "version")]
        self._channel = state.key("topic", _TOPIC)
        self._read, self._write = state.script(_READ), state.script(_WRITE)
        state.on_return(records.unsent.set)
        broadcast.receive(_TOPIC, Receiver(self._on_message, self.exchange))

    async def run(self) -> None:
        """Send what was written, and read again now and then, until cancelled."""
        while True:
            try:
                await self.exchange()
            except StateUnavailableError:
                self._records.unsent.clear()  # it waits
            try:
                async with asyncio.timeout(_EXCHANGE_SECONDS):
                    await self._records.unsent.wait()
            except TimeoutError:
                continue

    async def exchange(self) -> None:
        """Read, then send; raises ``StateUnavailableError``."""
        arguments: list[bytes | int] = [self._version, int(KEPT_SECONDS)]
        answer = await self._state.call(partial(self._read, self._keys, arguments))
        self._set_clock(answer)
        if len(answer) > 3:
            texts = [text.decode(errors="replace") for text in answer[3]]
            self._records.merge(zip(texts[::2], texts[1::2], strict=True), are_all=True)
            self._version = answer[2]
            old = self._records.forget_old()
            if old:
                await self._state.call(lambda: self._state.client.hdel(self._keys[0], *old))
        self._records.has_read = True
        await self._send()

    async def _send(self) -> None:
        while found := self._records.to_send(_MOST_AT_ONCE):
            arguments = [self._channel]
            for name, record in found.items():
                arguments += name, Records.text_of(record)
            self._set_clock(await self._state.call(partial(self._write, self._keys, arguments)))
            self._records.sent(found)

    def _on_message(self, message: bytes) -> None:
        try:
            self._records.merge([(str(name), str(text)) for name, text in json.loads(message)])
        except (ValueError, TypeError):
            logger.warning("shared state: a message about records cannot be read")

    def _set_clock(self, answer: list[bytes]) -> None:
        self._records.set_clock(int(answer[0]) + int(answer[1]) / 1e6)
