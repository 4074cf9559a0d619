"""Connection pool of one backend: connections in use, and idle ones kept open for the next request."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from dataclasses import dataclass
from typing import NamedTuple

from inference_engine_proxy_server.errors import BackendUnreachable, CapacityError
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.idle_limit import IdleLimit, IdleReserve
from inference_engine_proxy_server.wire.origin import Origin
from inference_engine_proxy_server.wire.reply_head import ReplyHead
from inference_engine_proxy_server.wire.unreachable import reason_unreachable

__all__ = ["Activity", "BackendConnections", "BackendLimits"]

logger = logging.getLogger(__name__)

_ADDRESS_SECONDS = 10.0  # how long resolved addresses are cached; short, so that a backend that moved is found again
_HANDSHAKE_SHARE = 0.9  # of the time for a connection, so that the error of an unanswered TLS handshake is its own
_OUR_OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class BackendLimits:
    """Deadlines of connections to backends, in seconds.

    Attributes:
        connect_seconds: for establishing a connection, including name resolution and TLS.
        first_byte_seconds: longest wait for a reply's first byte.
        pause_seconds: longest pause between later bytes.
        idle_seconds: how long a connection is kept open for the next request; 0 keeps none. Must be below the 5 s
            after which vLLM and llama.cpp close idle connections, or requests would race with the close.
    """

    connect_seconds: float
    first_byte_seconds: float
    pause_seconds: float
    idle_seconds: float


class Activity(NamedTuple):
    """A backend's progress with the requests it has now; times are readings of the clock.

    Attributes:
        last_byte_at: when the backend last sent a byte of a reply, as far as recorded; 0 for never.
        waiting_since: when the oldest request was sent, not counting time spent waiting for a slow client; ``None`` if
            there is no request that the backend could make progress with.
        answered_sent_at: of the requests that the backend is answering without an error, when the latest was sent; 0 if
            there is none.
        has_begun: at least one of the replies has begun.
    """

    last_byte_at: float = 0.0
    waiting_since: float | None = None
    answered_sent_at: float = 0.0
    has_begun: bool = False


class BackendConnections:
    """The connections to one backend.

    Args:
        origin: the backend's address.
        limits: deadlines.
        deadlines: watches the connections.
        ca_file: PEM file with further certificate authorities; ``None`` for those of the system only.
        reserve: of idle connections, shared by all backends; ``None`` if there is none.

    Attributes:
        origin: the backend's address.
        keeps_alive: connections are kept open for the next request.
    """

    def __init__(
        self,
        origin: Origin,
        limits: BackendLimits,
        deadlines: Deadlines,
        ca_file: str | None = None,
        reserve: IdleReserve | None = None,
    ) -> None:
        self.origin = origin
        self.keeps_alive = limits.idle_seconds > 0
        self._limits = limits
        self._deadlines = deadlines
        self._memory = HeadMemory[ReplyHead]()
        self._locations = origin.locations()
        self._idle: list[BackendConnection] = []
        self._idle_limit = IdleLimit(reserve or IdleReserve(0))
        self._in_use: set[BackendConnection] = set()
        self._last_byte_at = 0.0  # on connections that are no longer in use
        self._tls = ssl.create_default_context() if origin.is_tls else None
        if self._tls is not None and ca_file is not None:
            self._tls.load_verify_locations(ca_file)
        self._addresses: list[str] = []
        self._addresses_until = 0.0
        self._has_warned = False

    def keep_alive(self, *, wanted: bool) -> None:
        """Set whether connections are kept open for the next request; the settings can rule it out."""
        self.keeps_alive = wanted and self._limits.idle_seconds > 0

    def take_idle(self) -> BackendConnection | None:
        """Take the most recently used idle connection that is still usable; ``None`` if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_stale():
                self._in_use.add(connection)
                return connection
            connection.abort()
        return None

    async def connect(self, within_seconds: float = NEVER) -> BackendConnection:
        """Open a connection for one request, within the usual deadline or ``within_seconds`` if that is shorter.

        Raises:
            BackendUnreachable: the connection was refused, the name was not found, or the deadline has passed.
            CapacityError: this machine is out of file descriptors or ports; the backend is not to blame.
        """
        if self._idle_limit.is_raised:
            self._follow_use()
        seconds = min(self._limits.connect_seconds, within_seconds)
        connecting = asyncio.get_running_loop().create_task(self._connect(seconds))  # asyncio.timeout needs a task
        try:
            connection = await connecting
        except asyncio.CancelledError:
            if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
                connecting.result().abort()  # it was established at the same moment at which the client disconnected
            raise
        self._in_use.add(connection)
        return connection

    def release(self, connection: BackendConnection) -> None:
        """End one request's use of ``connection``, successful or not: keep it for the next request, or close it."""
        self._in_use.discard(connection)
        if connection.last_byte_at > self._last_byte_at:
            self._last_byte_at = connection.last_byte_at
        if self.keeps_alive and connection.is_reusable:
            promised = connection.keep_alive_seconds
            seconds = self._limits.idle_seconds if promised is None else min(self._limits.idle_seconds, promised - 1)
            if seconds > 0 and (len(self._idle) < self._idle_limit.most or self._has_room()):
                connection.rest(seconds)
                self._idle.append(connection)
                return
        connection.abort()

    def discard(self, connection: BackendConnection) -> None:
        """End the use of ``connection`` by a poll, which says nothing about progress with requests, or a WebSocket."""
        self._in_use.discard(connection)
        connection.abort()

    def activity(self) -> Activity:
        """The backend's progress with its requests now."""
        serving = [connection for connection in self._in_use if connection.exchange is not None]
        if not serving:
            return Activity(self._last_byte_at)
        now = self._deadlines.clock()
        for connection in serving:
            connection.look(now)  # connections record progress rarely, so their latest bytes would look too old
        waits_since = min(connection.waits_since for connection in serving)
        return Activity(
            max(self._last_byte_at, *(connection.last_byte_at for connection in serving)),
            None if waits_since == NEVER else waits_since,
            max(connection.sent_at if connection.is_answering_well else 0.0 for connection in serving),
            any(connection.has_begun for connection in serving),
        )

    def unanswered(self) -> list[tuple[BackendConnection, Exchange]]:
        """Requests that wait for their reply, or for the first event of a stream, and their connections."""
        return [
            (connection, connection.exchange)
            for connection in self._in_use
            if connection.exchange is not None and connection.is_unanswered
        ]

    def streaming(self) -> list[tuple[BackendConnection, Exchange]]:
        """Requests whose replies have begun, and their connections."""
        return [
            (connection, connection.exchange)
            for connection in self._in_use
            if connection.exchange is not None and not connection.is_unanswered
        ]

    def close(self) -> None:
        """Close the idle connections; requests in progress finish on their own."""
        self._idle_limit.close()
        while self._idle:
            self._idle.pop().abort()

    def _has_room(self) -> bool:
        """Whether one more idle connection may be kept, although there are as many as the limit allows."""
        self._drop_closed()
        return len(self._idle) < self._idle_limit.most or self._idle_limit.grow()

    def _follow_use(self) -> None:
        self._drop_closed()
        self._idle_limit.shrink(len(self._idle) + len(self._in_use), self._deadlines.clock())

    def _drop_closed(self) -> None:
        self._idle = [connection for connection in self._idle if not connection.is_closed]

    async def _resolve(self, seconds: float) -> list[str]:
        """The backend's addresses; the last known ones when name resolution fails or hangs."""
        if self._deadlines.clock() >= self._addresses_until:
            if self._addresses:  # one task resolves the name again; the others use the known addresses meanwhile
                self._addresses_until = self._deadlines.clock() + _ADDRESS_SECONDS
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(seconds / 2):  # leaves time to try a known address
                    found = await loop.getaddrinfo(self.origin.host, self.origin.port, type=socket.SOCK_STREAM)
            except OSError:
                if not self._addresses:
                    raise
            else:
                self._addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
                self._warn_of_unused_addresses()
            self._addresses_until = self._deadlines.clock() + _ADDRESS_SECONDS
        return self._addresses

    def _warn_of_unused_addresses(self) -> None:
        """Log once that a name with several addresses is one backend; an IPv4 and an IPv6 address are one host's."""
        most = max(sum((":" in one) is is_ipv6 for one in self._addresses) for is_ipv6 in (False, True))
        if most > 1 and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the name %s has %d addresses, and only one of them is used: "
                "begin its URL with dns+ to use each address as a backend of its own",
                self.origin.host,
                most,
            )

    async def _connect(self, seconds: float) -> BackendConnection:
        try:
            async with asyncio.timeout(seconds):
                connection = await self._connect_to_any(await self._resolve(seconds), seconds)
        except (OSError, UnicodeError) as error:  # UnicodeError: the text cannot be a host name
            if isinstance(error, OSError) and error.errno in _OUR_OWN_SHORTAGES:
                raise CapacityError(
                    "The proxy cannot open another connection.", code="overloaded", retry_after_seconds=1
                ) from error
            self._addresses_until = 0.0
            timed_out = isinstance(error, (TimeoutError, ConnectionAbortedError))  # the latter: in the TLS handshake
            reason = reason_unreachable(error)
            raise BackendUnreachable("The backend cannot be reached.", timed_out=timed_out, reason=reason) from error
        return connection

    def _new_connection(self) -> BackendConnection:
        limits = self._limits
        return BackendConnection(
            self._deadlines, self._memory, limits.first_byte_seconds, limits.pause_seconds, self._locations
        )

    async def _connect_to_any(self, addresses: list[str], seconds: float) -> BackendConnection:
        """Connect to the first address that answers, and try that address first from now on."""
        loop = asyncio.get_running_loop()
        # Per address, so that an address that drops all packets leaves time for the others.
        share_seconds = seconds / max(1, len(addresses))
        handshake_seconds = _HANDSHAKE_SHARE * share_seconds if self._tls else None
        failure = OSError("the name has no address")
        for address in addresses:
            try:
                async with asyncio.timeout(share_seconds):
                    _, connection = await loop.create_connection(
                        self._new_connection,
                        address,
                        self.origin.port,
                        ssl=self._tls,
                        server_hostname=self.origin.server_name if self._tls else None,
                        ssl_handshake_timeout=handshake_seconds,
                    )
            except OSError as error:
                failure = error
            else:
                # A new list, because other tasks may be iterating over the old one.
                self._addresses = sorted(self._addresses, key=lambda known: known != address)
                return connection
        try:
            raise failure
        finally:
            del failure  # its traceback refers to this frame: a reference cycle
