"""Which backend has which response, stored completion or stream, and which key created it: known to all replicas.

What a process learns reaches the others in the background. If a request names a resource that a process has not heard
of, it asks the server once, for a short time, and then goes on as without shared state.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import islice

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.routing.affinity import AffinityTable, Entry
from inference_engine_proxy_server.state.broadcast import Broadcast, Receiver
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError

__all__ = ["SharedAffinityTable"]

_TOPIC = "resources"
_SEND_SECONDS = 0.1  # in which a batch is collected
_PAUSE_SECONDS = 1.0  # while the server cannot be reached
_MOST_AT_ONCE = 200
_MOST_WAITING = 10_000  # while the server cannot be reached; the latest
_ASK_SECONDS = 0.1  # the longest wait of a request
_KEPT_SECONDS = 86_400

# KEYS: a resource. ARGV: its backend, its owner or nothing, the seconds for which it is kept. As in
# :meth:`.AffinityTable.remember`, a known owner is never replaced.
_REMEMBER = """\
local owner = ARGV[2] ~= '' and ARGV[2] or cjson.null
local is_readable, known = pcall(cjson.decode, redis.call('GET', KEYS[1]) or '')
if is_readable and type(known) == 'table' and type(known[2]) == 'string' then owner = known[2] end
redis.call('SET', KEYS[1], cjson.encode({ARGV[1], owner}), 'EX', ARGV[3])
"""

logger = logging.getLogger(__name__)


class SharedAffinityTable(AffinityTable):
    """A table that learns from other processes, and tells them what it learns.

    Args:
        fleet: returns all backends.
        state: the shared state.
        broadcast: its messages; this object must be made before they are received.
    """

    is_shared = True

    def __init__(self, fleet: Callable[[], Sequence[Backend]], state: SharedState, broadcast: Broadcast) -> None:
        super().__init__(fleet)
        self._state = state
        self._broadcast = broadcast
        self._remember = state.script(_REMEMBER)
        self._unsent: dict[bytes, Entry] = {}
        self._wake = asyncio.Event()
        broadcast.receive(_TOPIC, Receiver(self._on_message))

    def remember(self, name: bytes, backend: Backend, owner: str | None = None) -> None:
        """See :class:`AffinityTable`."""
        before = self.entry(name)
        super().remember(name, backend, owner)
        after = self.entry(name)
        if after is not None and after != before:
            self._unsent.pop(name, None)
            self._unsent[name] = after
            if len(self._unsent) > _MOST_WAITING:
                del self._unsent[next(iter(self._unsent))]
            self._wake.set()

    async def find(self, name: bytes) -> None:
        """Ask the server for a resource that is not in the table; without effect if it does not know it, or is slow."""
        await asyncio.gather(self._find(name))  # in a task: the caller may be a light task, which has no timeouts

    async def _find(self, name: bytes) -> None:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                found = await self._state.call(lambda: self._state.client.get(self._key(name)))
            if found is not None:
                url, owner = json.loads(found)
                self.adopt(name, url, owner)
        except (StateUnavailableError, TimeoutError, ValueError, TypeError):
            return

    async def run(self) -> None:
        """Send what this process learns to other replicas, until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_SEND_SECONDS)
            self._wake.clear()
            try:
                await self._send()
            except StateUnavailableError:
                await asyncio.sleep(_PAUSE_SECONDS)
                self._wake.set()

    async def _send(self) -> None:
        while self._unsent:
            batch = dict(islice(self._unsent.items(), _MOST_AT_ONCE))
            await self._state.call(partial(self._store, batch))
            for name, entry in batch.items():
                if self._unsent.get(name) == entry:
                    del self._unsent[name]

    async def _store(self, batch: dict[bytes, Entry]) -> None:
        pipeline = self._state.client.pipeline(transaction=False)
        for name, entry in batch.items():
            arguments: list[str | int] = [entry.url, entry.owner or "", _KEPT_SECONDS]
            await self._remember([self._key(name)], arguments, client=pipeline)
        await pipeline.execute()
        entries = [(name.decode("latin-1"), *entry) for name, entry in batch.items()]
        await self._broadcast.send(_TOPIC, json.dumps([self._state.member, entries]).encode())

    def _on_message(self, message: bytes) -> None:
        try:
            sender, entries = json.loads(message)
            if sender != self._state.member:
                for name, url, owner in entries:
                    self.adopt(name.encode("latin-1"), url, owner)
        except (ValueError, TypeError, AttributeError):
            logger.warning("shared state: a message about resources cannot be read")

    def _key(self, name: bytes) -> str:
        return self._state.key("resource", blake2b(name, digest_size=16).hexdigest())
