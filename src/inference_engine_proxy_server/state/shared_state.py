"""The shared state as one process sees it: calls of the server, keys, and the members that share the state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from inference_engine_proxy_server.state.availability import Availability
from inference_engine_proxy_server.state.redis_client import CALL_SECONDS, REDIS_ERRORS

__all__ = ["MEMBER_SECONDS", "SharedState", "StateUnavailableError"]

MEMBER_SECONDS = 5.0
"""After the last heartbeat of a member, when it counts as gone."""

_HEARTBEAT_SECONDS = 1.0

# KEYS: members. ARGV: this member, the milliseconds after which a silent member is gone. Returns all members.
_BEAT = """\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""

T = TypeVar("T")


class StateUnavailableError(Exception):
    """The server does not answer, or not in time. It has been logged; the caller goes on without it."""


class SharedState:
    """The connection of one process to the server.

    Args:
        client: of the server.
        server: its address, without a password, for people.
        prefix: of all keys.
        member: the identity of this process: ``REPLICA.WORKER.RANDOM``, unique for each process that ever joins.
        now: seconds since the epoch.

    Attributes:
        client: for the commands of :meth:`call`.
        member: the identity of this process.
        members: all members that were alive at the last heartbeat, this one included, in no order. While the server is
            not available, the last ones known; only this one before the first heartbeat.
    """

    def __init__(
        self, client: Redis, server: str, prefix: str, member: str, now: Callable[[], float] = time.time
    ) -> None:
        self.client = client
        self.member = member
        self.members: tuple[str, ...] = (member,)
        self._prefix = prefix
        self._availability = Availability(server, now)
        self._beat = self.script(_BEAT)
        self._returned: list[Callable[[], None]] = []
        self._lost = asyncio.Event()

    def __repr__(self) -> str:
        return f"<SharedState of {self.member}, {len(self.members)} members, available: {self.is_available}>"

    @property
    def is_available(self) -> bool:
        """Whether the server answered last time."""
        return self._availability.is_available

    @property
    def since(self) -> float:
        """When :attr:`is_available` last changed, in seconds since the epoch."""
        return self._availability.since

    @property
    def failures(self) -> int:
        """How often the server has stopped answering."""
        return self._availability.failures

    @property
    def replicas(self) -> int:
        """How many replicas the members belong to."""
        return len({member.partition(".")[0] for member in self.members})

    def key(self, *parts: str) -> str:
        """The name of a key: the prefix and ``parts``, joined by colons."""
        return ":".join((self._prefix, *parts))

    def script(self, text: str) -> AsyncScript:
        """A Lua script, which is loaded again when the server has forgotten it. Call it within :meth:`call`."""
        return self.client.register_script(text)

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` each time the server becomes available, at first, too. It may have lost all data."""
        self._returned.append(callback)

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of ``work``, one or a few commands of :attr:`client`. For loops in the background only.

        Raises:
            StateUnavailableError: at once while the server is not available, or after a second at most.
        """
        if not self.is_available:
            raise StateUnavailableError
        return await self._attempt(work)

    async def run(self) -> None:
        """Send heartbeats, and find out when the server is available again, until cancelled; then leave."""
        try:
            while True:
                self._lost.clear()
                try:
                    await self._attempt(self._send_heartbeat)
                except StateUnavailableError:
                    await asyncio.sleep(self._availability.pause_seconds())
                    continue
                if self._availability.succeeded():
                    for callback in self._returned:
                        callback()
                try:
                    async with asyncio.timeout(_HEARTBEAT_SECONDS):
                        await self._lost.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(self._availability.pause_seconds())
        finally:
            await self._leave()

    async def close(self) -> None:
        """Close all connections, after all loops have ended."""
        await self.client.aclose()

    async def _send_heartbeat(self) -> None:
        found = await self._beat([self.key("members")], [self.member, int(MEMBER_SECONDS * 1000)])
        self.members = tuple(sorted(member.decode() for member in found))

    async def _leave(self) -> None:
        if self.is_available:
            try:
                await self._attempt(lambda: self.client.zrem(self.key("members"), self.member))
            except StateUnavailableError:
                return  # the others will notice

    async def _attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await work()
        except REDIS_ERRORS as error:
            self._availability.failed(_reason(error))
            self._lost.set()
            raise StateUnavailableError from error


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) or not str(error):
        return f"no answer within {CALL_SECONDS:g} s"
    return str(error).rstrip(".")
