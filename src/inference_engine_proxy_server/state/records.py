"""Records that all members have in common: small, few, and the same everywhere after a moment.

Every member has all of them in memory. Of two versions of a record, the later one counts, wherever it was written: so
members that were cut off exchange what they have missed in both directions, and a server that has lost its data gets
them back. Times are those of the server's clock; a member that has not reached it yet uses its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from inference_engine_proxy_server.state.broadcast import Broadcast, Receiver
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError

__all__ = ["Record", "SharedRecords"]

_TOPIC = "records"
_LEAST_STEP_SECONDS = 0.001  # between two versions, so that a member's command is later than what it has seen
_EXCHANGE_SECONDS = 5.0  # messages can be lost
_NEEDED_SECONDS = 3600.0  # after which a record that is needed says so again
_KEPT_SECONDS = 7 * 86_400.0  # after that it was last needed
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


class Record(NamedTuple):
    """One version of a record.

    Attributes:
        at: when it was written, in seconds since the epoch.
        needed_at: when a member last said that it needs it.
        value: JSON; ``None`` if what it said is no longer so.
    """

    at: float
    needed_at: float
    value: Any

    @property
    def version(self) -> tuple[float, float]:
        """The greater one of two counts."""
        return self.at, self.needed_at


class SharedRecords:
    """All records, as this member knows them.

    Args:
        state: the shared state.
        broadcast: its messages; this object must be made before they are received.
        clock: seconds since the epoch.

    Attributes:
        has_read: whether the records have been read at least once.
    """

    def __init__(self, state: SharedState, broadcast: Broadcast, clock: Callable[[], float] = time.time) -> None:
        self.has_read = False
        self._state = state
        self._clock = clock
        self._ahead_seconds = 0.0  # of the server's clock
        self._records: dict[str, Record] = {}
        self._unsent: set[str] = set()
        self._version = b"-"  # that was read last
        self._wake = asyncio.Event()
        self._on_change: list[Callable[[str, Record], None]] = []
        self._keys = [state.key("records"), state.key("records", "version")]
        self._channel = state.key("topic", _TOPIC)
        self._read_script, self._write_script = state.script(_READ), state.script(_WRITE)
        broadcast.receive(_TOPIC, Receiver(self._on_message, self.exchange))

    def __repr__(self) -> str:
        return f"<SharedRecords, {len(self._records)}, {len(self._unsent)} to be sent>"

    def subscribe(self, on_change: Callable[[str, Record], None]) -> None:
        """Call ``on_change`` with the name and the new version of each record that another member has changed."""
        self._on_change.append(on_change)

    def now(self) -> float:
        """The time by the server's clock, in seconds since the epoch."""
        return self._clock() + self._ahead_seconds

    def get(self, name: str) -> Record | None:
        """The record; ``None`` if there has never been one."""
        return self._records.get(name)

    def named(self, beginning: str) -> Iterator[tuple[str, Record]]:
        """The names and the records whose names begin so."""
        return ((name, record) for name, record in list(self._records.items()) if name.startswith(beginning))

    def write(self, name: str, value: Any, at: float | None = None) -> None:
        """Change a record: at once for this member, and for all others as soon as the server can be reached.

        Args:
            name: of the record.
            value: JSON.
            at: when this became so; ``None`` for now, 0 for something that anything else replaces.
        """
        known, now = self._records.get(name), self.now()
        if at is None:
            at = now if known is None else max(now, known.at + _LEAST_STEP_SECONDS)
        if known is None or at > known.at:
            self._keep(name, Record(at, now, value))

    def need(self, name: str) -> None:
        """Say now and then that a record is needed, so that it is not forgotten after some days."""
        known, now = self._records.get(name), self.now()
        if known is not None and now - known.needed_at > _NEEDED_SECONDS:
            self._keep(name, known._replace(needed_at=now))

    async def run(self) -> None:
        """Send what was written, and read again now and then, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.exchange()
            except StateUnavailableError:
                self._wake.clear()  # what is unsent waits
            try:
                async with asyncio.timeout(_EXCHANGE_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def exchange(self) -> None:
        """Read what others have written, and send what they lack; raises ``StateUnavailableError``."""
        asked = self._version
        answer = await self._state.call(lambda: self._read_script(self._keys, [asked, int(_KEPT_SECONDS)]))
        self._set_clock(answer)
        if len(answer) > 3:
            names, records = answer[3][::2], answer[3][1::2]
            self._merge(zip(names, records, strict=True))
            stored = {name.decode(errors="replace") for name in names}
            self._unsent |= self._records.keys() - stored
            self._version = answer[2]
            await self._forget_old()
        self.has_read = True
        await self._send()

    def _keep(self, name: str, record: Record) -> None:
        self._records[name] = record
        self._unsent.add(name)
        self._wake.set()

    async def _send(self) -> None:
        while self._unsent:
            names = list(self._unsent)[:_MOST_AT_ONCE]
            sent = {name: self._records[name] for name in names if name in self._records}
            arguments = [self._channel]
            for name, record in sent.items():
                arguments += name, json.dumps(record)
            self._set_clock(await self._state.call(partial(self._write_script, self._keys, arguments)))
            self._unsent -= {name for name in names if self._records.get(name) == sent.get(name)}

    async def _forget_old(self) -> None:
        """Remove records that no member has needed for days."""
        oldest = self.now() - _KEPT_SECONDS
        old = [name for name, record in self._records.items() if max(record.version) < oldest]
        if old:
            await self._state.call(lambda: self._state.client.hdel(self._keys[0], *old))
            for name in old:
                del self._records[name]
            self._unsent.difference_update(old)

    def _on_message(self, message: bytes) -> None:
        try:
            later = json.loads(message)
            self._merge((name.encode(), record.encode()) for name, record in later)
        except (ValueError, TypeError, AttributeError):
            logger.warning("shared state: a message about records cannot be read")

    def _merge(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        """Adopt what is later, and note what is earlier, so that it is replaced."""
        changed = []
        for raw_name, raw in stored:
            name = raw_name.decode(errors="replace")
            record = _as_record(raw)
            known = self._records.get(name)
            if record is None:
                logger.warning("shared state: the record %r cannot be read", name[:100])
            elif known is None or record.version > known.version:
                self._records[name] = record
                self._unsent.discard(name)
                if known is None or (record.at, record.value) != (known.at, known.value):
                    changed.append((name, record))
            elif record.version < known.version:
                self._unsent.add(name)
                self._wake.set()
        for name, record in changed:
            for on_change in self._on_change:
                on_change(name, record)

    def _set_clock(self, answer: list[bytes]) -> None:
        self._ahead_seconds = int(answer[0]) + int(answer[1]) / 1e6 - self._clock()


def _as_record(raw: bytes) -> Record | None:
    try:
        at, needed_at, value = json.loads(raw)
        return Record(float(at), float(needed_at), value)
    except (ValueError, TypeError):
        return None
