"""Hosting with uvicorn: sockets, signals and graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn

from inference_engine_proxy_server.config.sources import SettingsError

__all__ = [
    "ACCEPT_BACKLOG",
    "Host",
    "Hosted",
    "SharedPort",
    "announce",
    "connection_limit",
    "listen",
    "raise_file_limit",
    "url_of",
]

ACCEPT_BACKLOG = 4096  # connections that may wait to be accepted; the kernel caps the number at its own limit
_MOST_CONNECTIONS = 10_000
_SHARE_OF_FILES = (
    0.4  # Envoy's advice: a client connection may need a second one to a backend, and there are other files
)
_FORCED_STOP_SECONDS = 0.5  # for cancelled tasks to end in an immediate stop

logger = logging.getLogger(__name__)


class Hosted(Protocol):
    """What the hosted application provides beyond uvicorn's configuration."""

    def begin_shutdown(self, *, may_linger: bool) -> float:
        """Announce to clients and load balancers that this process will stop.

        Args:
            may_linger: the process may accept connections for a grace period.

        Returns:
            The number of seconds to keep accepting new connections.
        """

    def end_feeds(self) -> None:
        """End the replies that would never end on their own: the process waits for the end of all replies now."""

    def accept_operator(self, server_state: Any) -> asyncio.Protocol:
        """The protocol for a new connection on ADMIN_PORT."""


class Host(uvicorn.Server):
    """A uvicorn server with its own start message, a grace period, and an immediate stop at the second signal.

    During the grace period the server keeps accepting connections, for clients and load balancers that have not learned
    yet that it will stop.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        hosted: Hosted,
        on_started: Callable[[str], None] | None,
        operators: socket.socket | None = None,
    ) -> None:
        super().__init__(config)
        self._hosted = hosted
        self._on_started = on_started
        self._operators = operators
        self._loop: asyncio.AbstractEventLoop | None = None  # once it runs
        self._stops_at: float | None = None  # when it stops listening; ``None`` before a signal to stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self._operators is not None:
            accept = partial(self._hosted.accept_operator, self.server_state)
            self.servers.append(await self._loop.create_server(accept, sock=self._operators, ssl=self.config.ssl))
        if self.started and sockets:
            self._announce(sockets[0])

    def _announce(self, listener: socket.socket) -> None:
        is_tls = self.config.is_ssl
        operators = None if self._operators is None else url_of(self._operators.getsockname(), is_tls=is_tls)
        announce(url_of(listener.getsockname(), is_tls=is_tls), operators, self._on_started)

    @property
    def is_stopping(self) -> bool:
        """The server has received a signal to stop."""
        return self._stops_at is not None or self.should_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A signal may arrive while a line is being logged, and another one must not be logged within that.
        if self._loop is None:
            self._begin_stop(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._begin_stop, sig, frame)

    def _begin_stop(self, sig: int, frame: FrameType | None) -> None:
        if self.is_stopping:
            self.should_exit = self.force_exit = True
            return
        grace_seconds = self._hosted.begin_shutdown(may_linger=sig == signal.SIGTERM)
        self._stops_at = time.monotonic() + grace_seconds
        if grace_seconds:
            logger.info(
                "stopping in %g s; new requests are served until then (a second signal stops at once)", grace_seconds
            )
        else:
            logger.info("stopping; requests in progress may finish (a second signal stops at once)")
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._stops_at is not None and time.monotonic() >= self._stops_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hosted.end_feeds()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would cancel these tasks when the loop closes, too late for the access log
            for task in self.server_state.tasks:
                task.cancel()
            deadline = time.monotonic() + _FORCED_STOP_SECONDS
            while self.server_state.tasks and time.monotonic() < deadline:  # noqa: ASYNC110 - not worth an event
                await asyncio.sleep(0.01)
            await self.lifespan.shutdown()


def raise_file_limit() -> None:
    """Raise the soft limit on open files to the hard limit: each request needs two, and 1024 is a common soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limit() -> int:
    """The number of client connections that the limit on open files allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, int(soft * _SHARE_OF_FILES))


def listen(name: str, host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        name: the setting that ``port`` comes from.
        host: the address to listen on.
        port: the port to listen on.

    Raises:
        SettingsError: ``host`` is not an address of this machine.
        OSError: the port is not available; the message names the settings.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return _listener(address[:2], family)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            advice = "0.0.0.0 means all of its addresses"
            raise SettingsError([f"HOST is {host!r}: this machine has no such address ({advice})"]) from error
        # Python repeats the address in the error's own text.
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(f"cannot listen on HOST {host}, {name} {port}: {reason}") from error


def _listener(address: tuple[Any, ...], family: int, *, is_shared: bool = False) -> socket.socket:
    """A listening socket; at ``::``, every IPv6 address, it accepts IPv4 connections, too."""
    is_dual = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        address, family=family, backlog=ACCEPT_BACKLOG, reuse_port=is_shared, dualstack_ipv6=is_dual
    )


class SharedPort:
    """A port on which several sockets listen; the kernel distributes connections over them.

    Args:
        name, host, port: as for :func:`listen`. Fails, too, if the port is already in use.

    Attributes:
        address: host and port.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        self._spare: socket.socket | None = listen(name, host, port)
        self._spare.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEPORT, 1
        )  # other sockets may share the port from now on
        self._family = self._spare.family
        self.address = self._spare.getsockname()[:2]

    def listener(self) -> socket.socket:
        """Another socket that listens on the port."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        return _listener(self.address, self._family, is_shared=True)


def announce(url: str, operators_url: str | None, on_started: Callable[[str], None] | None) -> None:
    """Report the URLs that the server listens on: log them, and call ``on_started`` with ``url``."""
    if operators_url is not None:
        logger.info("listening on %s for operators", operators_url)
    logger.info("listening on %s", url)
    if on_started is not None:
        on_started(url)


def url_of(address: Sequence[Any], *, is_tls: bool) -> str:
    """The base URL of a server that listens at ``address`` (host, port, ...)."""
    host, port = address[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
