"""Hosting with uvicorn: sockets, signals and graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn

__all__ = ["Host", "Hosted", "connection_limit", "raise_file_limit"]

_MOST_CONNECTIONS = 10_000
_SHARE_OF_FILES = (
    0.4  # Envoy's advice: a client connection may need a second one to a backend, and there are other files
)
_HANDSHAKE_SECONDS = 2.0  # a client that has connected may not have ended its TLS handshake yet
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

    def hand_over(self) -> float:
        """Close each connection after its next reply, because another program serves the port.

        Returns:
            The number of seconds after which connections that were idle have ended.
        """

    def end_feeds(self) -> None:
        """End the replies that would never end on their own: the process waits for the end of all replies now."""

    def reload(self) -> None:
        """Reload the settings, as after SIGHUP."""

    def obey(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Drain or undrain the backend ``url`` by an operator's command, and move its requests if it says so."""

    def record_readiness_probe(self) -> None:
        """Record that the readiness of this or another process has just been probed."""

    def accept_operator(self, server_state: Any) -> asyncio.Protocol:
        """The protocol for a new connection on ADMIN_PORT."""


class Host(uvicorn.Server):
    """A uvicorn server with a grace period, an immediate stop at the second signal, and a port that it can hand over.

    During the grace period the server keeps accepting connections, for clients and load balancers that have not learned
    yet that it will stop.

    Args:
        config: of uvicorn.
        hosted: the application.
        operators: sockets on ADMIN_PORT.
    """

    def __init__(self, config: uvicorn.Config, hosted: Hosted, operators: Sequence[socket.socket] = ()) -> None:
        super().__init__(config)
        self._hosted = hosted
        self._operators = operators
        self._loop: asyncio.AbstractEventLoop | None = None  # once it runs
        self._stops_at: float | None = None  # when it begins to shut down; ``None`` before a signal to stop
        self._handed_over_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            accept = partial(self._hosted.accept_operator, self.server_state)
            for one in self._operators:
                self.servers.append(await self._loop.create_server(accept, sock=one, ssl=self.config.ssl))
            self._on_serving(self._loop, sockets or [])

    def _on_serving(self, loop: asyncio.AbstractEventLoop, listeners: Sequence[socket.socket]) -> None:
        """The server accepts connections; ``listeners`` are those on PORT."""

    def _on_stopping(self, seconds: float) -> None:
        """The server stops, and ends within ``seconds``."""

    def hand_over(self) -> None:
        """Leave the port to another program, and end with the last connection.

        Idle connections are not closed: a request could be on its way. They end after their next reply, or when they
        have been idle for long enough.
        """
        if self.is_stopping:
            return
        self._handed_over_at = time.monotonic()
        self._stops_at = self._handed_over_at + self._hosted.hand_over()
        self._hosted.end_feeds()
        for server in self.servers:
            server.close()

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
        if self._handed_over_at is not None and sig == signal.SIGTERM:  # a service manager sends it to all processes
            logger.info("ending already, after requests in progress (SIGINT stops at once)")
            return
        if self.is_stopping:
            self.should_exit = self.force_exit = True
            return
        grace_seconds = self._hosted.begin_shutdown(may_linger=sig == signal.SIGTERM)
        self._stops_at = time.monotonic() + grace_seconds
        self._on_stopping(grace_seconds + (self.config.timeout_graceful_shutdown or 0))
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
        if self._handed_over_at is not None and not self.server_state.connections:
            self.should_exit |= time.monotonic() >= self._handed_over_at + _HANDSHAKE_SECONDS
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hosted.end_feeds()
        if self._handed_over_at is not None and self.config.timeout_graceful_shutdown:
            waited_seconds = int(time.monotonic() - self._handed_over_at)
            self.config.timeout_graceful_shutdown = max(1, self.config.timeout_graceful_shutdown - waited_seconds)
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
