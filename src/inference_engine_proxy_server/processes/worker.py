"""A worker process, which acts on the messages of its supervisor."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

import uvicorn

from inference_engine_proxy_server.processes.channel import (
    DRAIN,
    MOVE,
    READINESS_PROBED,
    ROSTER,
    SERVING,
    SIGNAL,
    UNDRAIN,
)
from inference_engine_proxy_server.processes.host import Host, Hosted
from inference_engine_proxy_server.processes.process_context import WorkerContext

__all__ = ["Worker", "WorkersProxy"]

logger = logging.getLogger(__name__)


class WorkersProxy(Hosted, Protocol):
    """The application that a worker hosts."""

    def reload(self) -> None:
        """Reload the settings, as after SIGHUP."""

    def obey(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Drain or undrain the backend ``url`` by an operator's command, and move its requests if it says so."""

    def record_readiness_probe(self) -> None:
        """Record that the readiness of this or another worker has just been probed."""


class Worker(Host):
    """A host that acts on its supervisor's messages instead of signals.

    A terminal or systemd may send a signal to all processes at once. The supervisor receives the signal, too, and
    forwards it; a worker that received it twice would stop immediately.
    """

    def __init__(self, config: uvicorn.Config, proxy: WorkersProxy, context: WorkerContext) -> None:
        super().__init__(config, proxy, None, *context.listeners[1:])
        self._proxy = proxy
        self._channel = context.channel
        self._roster = context.roster

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # the worker inherits handlers from the supervisor that do nothing

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_reader(self._channel.fileno(), self._handle_messages)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().shutdown(sockets)
        finally:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())

    def _announce(self, _listener: socket.socket) -> None:
        self._channel.send(SERVING)

    def _handle_messages(self) -> None:
        messages = self._channel.receive()
        if messages is None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            logger.error("the supervisor has ended")
            if not self.is_stopping:  # a second call would stop immediately
                self.handle_exit(signal.SIGINT, None)  # not SIGTERM: its grace period would keep the port occupied
            return
        for word, argument in messages:
            if word in (DRAIN, UNDRAIN, MOVE):
                self._proxy.obey(argument, is_draining=word != UNDRAIN, moves=word == MOVE)
            elif word == ROSTER:
                self._roster.follow(argument)
            elif word == READINESS_PROBED:
                self._proxy.record_readiness_probe()
            elif word == SIGNAL and int(argument) == signal.SIGHUP:
                self._proxy.reload()
            elif word == SIGNAL:
                self.handle_exit(int(argument), None)
