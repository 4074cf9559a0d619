"""All connections to one backend: those in use, and those kept open for the next request."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from inference_engine_proxy_server.errors import BackendUnreachable, CapacityError
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.reply_head import ReplyHead

__all__ = ["Activity", "BackendConnections", "BackendLimits", "Origin"]

_IDLE_CONNECTIONS = 32  # kept open per backend; nginx's default
_ADDRESS_SECONDS = 10.0  # how long a resolved name is believed, so that a backend that moved is found again
_OUR_OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class BackendLimits:
    """Deadlines of connections to backends, in seconds.

    Attributes:
        connect_seconds: to make a connection, name resolution and TLS included.
        first_byte_seconds: longest wait for a reply's first byte.
        pause_seconds: longest wait for each next one.
        idle_seconds: how long a connection is kept open for the next request; below the 5 s after which vLLM
            and llama.cpp close it themselves, else requests would cross with their closing. 0: not at all.
    """

    connect_seconds: float
    first_byte_seconds: float
    pause_seconds: float
    idle_seconds: float


class Activity(NamedTuple):
    """What a backend does with our clients' requests; times are readings of the clock.

    Attributes:
        last_byte_at: when it last sent a byte of a reply, as far as has been noted; 0: never.
        waiting_since: since when it has had the request that it has had longest, the time not counted in which a
            client was behind; ``None``: it has none that it could go on with.
        answered_sent_at: when the latest of those was sent that it is giving a reply to that is no error; 0: to none.
        has_begun: one of the replies has begun.
    """

    last_byte_at: float = 0.0
    waiting_since: float | None = None
    answered_sent_at: float = 0.0
    has_begun: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a backend is reached.

    Attributes:
        authority: its ``Host`` field.
        prefix: path before every request's own; empty, or ``/...`` without a trailing slash.
    """

    host: str
    port: int
    is_tls: bool
    authority: bytes
    prefix: bytes

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of a base URL that settings have found valid."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        authority = re.sub(r"^.*@", "", parts.netloc).encode()
        port = parts.port or (443 if is_tls else 80)
        return cls(parts.hostname or "", port, is_tls, authority, parts.path.rstrip("/").encode())


class BackendConnections:
    """The connections to one backend.

    Attributes:
        origin: where it is.
        keeps_alive: whether connections are kept for the next request.
    """

    def __init__(self, origin: Origin, limits: BackendLimits, deadlines: Deadlines) -> None:
        self.origin = origin
        self.keeps_alive = limits.idle_seconds > 0
        self._limits = limits
        self._deadlines = deadlines
        self._memory = HeadMemory[ReplyHead]()
        self._idle: list[BackendConnection] = []
        self._in_use: set[BackendConnection] = set()
        self._last_byte_at = 0.0  # of what is no longer in use
        self._tls = ssl.create_default_context() if origin.is_tls else None
        self._addresses: list[str] = []
        self._addresses_until = 0.0

    def keep_alive(self, *, wanted: bool) -> None:
        """Keep connections for the next request from now on, if the settings allow it at all; or do not."""
        self.keeps_alive = wanted and self._limits.idle_seconds > 0

    def take_idle(self) -> BackendConnection | None:
        """The connection that was used last and is still good, for one request; ``None``: there is none."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_stale():
                self._in_use.add(connection)
                return connection
            connection.abort()
        return None

    async def connect(self) -> BackendConnection:
        """A new connection, for one request.

        Raises:
            BackendUnreachable: refused, no such name, or not within the deadline.
            CapacityError: this machine has no file descriptor or port left; no backend is to blame.
        """
        connecting = asyncio.get_running_loop().create_task(self._connect())  # it is timed, which needs a task
        try:
            connection = await connecting
        except asyncio.CancelledError:
            if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
                connecting.result().abort()  # it came in the very moment in which its client left
            raise
        self._in_use.add(connection)
        return connection

    def give_back(self, connection: BackendConnection) -> None:
        """One request's use of ``connection`` is over, however it went: keep it for the next, or close it."""
        self._in_use.discard(connection)
        if connection.last_byte_at > self._last_byte_at:
            self._last_byte_at = connection.last_byte_at
        if self.keeps_alive and connection.is_reusable:
            promised = connection.keep_alive_seconds
            seconds = self._limits.idle_seconds if promised is None else min(self._limits.idle_seconds, promised - 1)
            if seconds > 0 and (len(self._idle) < _IDLE_CONNECTIONS or self._has_room()):
                connection.rest(seconds)
                self._idle.append(connection)
                return
        connection.abort()

    def discard(self, connection: BackendConnection) -> None:
        """A question's use of ``connection`` is over: that it was answered says nothing about requests."""
        self._in_use.discard(connection)
        connection.abort()

    def activity(self) -> Activity:
        """What the backend does with requests now."""
        serving = [connection for connection in self._in_use if connection.exchange is not None]
        if not serving:
            return Activity(self._last_byte_at)
        now = self._deadlines.clock()
        for connection in serving:
            connection.look(now)  # by itself each looks so seldom that its bytes could pass for old ones
        waits_since = min(connection.waits_since for connection in serving)
        return Activity(
            max(self._last_byte_at, *(connection.last_byte_at for connection in serving)),
            None if waits_since == NEVER else waits_since,
            max(connection.sent_at if connection.is_answering_well else 0.0 for connection in serving),
            any(connection.has_begun for connection in serving),
        )

    def unanswered(self) -> list[tuple[BackendConnection, Exchange]]:
        """Requests that wait for the first byte of their replies, and the connections that have them."""
        return [
            (connection, connection.exchange)
            for connection in self._in_use
            if connection.exchange is not None and not connection.has_begun
        ]

    def close(self) -> None:
        """Close what is kept open; requests under way end by themselves."""
        while self._idle:
            self._idle.pop().abort()

    def _has_room(self) -> bool:
        self._idle = [connection for connection in self._idle if not connection.is_stale()]
        return len(self._idle) < _IDLE_CONNECTIONS

    async def _resolve(self) -> list[str]:
        """The backend's addresses; the last known ones when the name service fails or hangs."""
        if self._deadlines.clock() >= self._addresses_until:
            if self._addresses:  # one asks; all others go on with what is known
                self._addresses_until = self._deadlines.clock() + _ADDRESS_SECONDS
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(self._limits.connect_seconds / 2):  # leaves time to use a known address
                    found = await loop.getaddrinfo(self.origin.host, self.origin.port, type=socket.SOCK_STREAM)
            except OSError:
                if not self._addresses:
                    raise
            else:
                self._addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
            self._addresses_until = self._deadlines.clock() + _ADDRESS_SECONDS
        return self._addresses

    async def _connect(self) -> BackendConnection:
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                connection = await self._connect_to_any(await self._resolve())
        except (OSError, UnicodeError) as error:  # UnicodeError: what cannot be a host name at all
            if isinstance(error, OSError) and error.errno in _OUR_OWN_SHORTAGES:
                raise CapacityError(
                    "The proxy has no connection left to give.", code="overloaded", retry_after_seconds=1
                ) from error
            self._addresses_until = 0.0
            timed_out = isinstance(error, TimeoutError)
            raise BackendUnreachable("The backend cannot be reached.", timed_out=timed_out) from error
        return connection

    async def _connect_to_any(self, addresses: list[str]) -> BackendConnection:
        """A connection to the first address that answers; it is tried first from then on."""
        loop = asyncio.get_running_loop()
        share_seconds = self._limits.connect_seconds / max(1, len(addresses))  # one that swallows packets leaves time
        failure = OSError("the name has no address")
        for address in addresses:
            try:
                async with asyncio.timeout(share_seconds):
                    _, connection = await loop.create_connection(
                        lambda: BackendConnection(
                            self._deadlines, self._memory, self._limits.first_byte_seconds, self._limits.pause_seconds
                        ),
                        address,
                        self.origin.port,
                        ssl=self._tls,
                        server_hostname=self.origin.host if self._tls else None,
                    )
            except OSError as error:
                failure = error
            else:
                # A new list: others may be walking through the old one.
                self._addresses = sorted(self._addresses, key=lambda known: known != address)
                return connection
        raise failure
