"""One of several processes that share the port: what its supervisor gives it, and how it listens to that."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import uvicorn

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.processes.channel import DRAIN, SERVING, SIGNAL, UNDRAIN, WATCHED, Channel
from inference_engine_proxy_server.processes.host import Host, Hosted
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.processes.siblings import Siblings

__all__ = ["Post", "Worker", "WorkersProxy"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker is given.

    Attributes:
        configuration: with the current fleet.
        listeners: its sockets on PORT and, where there is one, on ADMIN_PORT.
        channel: to the supervisor.
        siblings: the other workers.
        inbox: where they ask this one.
        board: the requests that all workers have on backends.
        drained: base URLs of the backends that operators have told not to get new requests.
    """

    configuration: Configuration
    listeners: tuple[socket.socket, ...]
    channel: Channel
    siblings: Siblings
    inbox: socket.socket
    board: SharedLeases
    drained: frozenset[str]

    def order(self, url: str, *, is_draining: bool) -> None:
        """Pass an operator's order about a backend on to all workers, those that are still to come included."""
        self.channel.tell(DRAIN if is_draining else UNDRAIN, url)

    def say_watched(self) -> None:
        """Let all workers know that somebody asks whether they are ready."""
        self.channel.tell(WATCHED)


class WorkersProxy(Hosted, Protocol):
    """What a worker hosts."""

    def reload(self) -> None:
        """Read the settings again, as after SIGHUP."""

    def obey(self, url: str, *, is_draining: bool) -> None:
        """An operator has said that the backend ``url`` gets no new requests, or does so again."""

    def note_watched(self) -> None:
        """Somebody has asked a sibling whether it is ready."""


class Worker(Host):
    """A host that goes by what its supervisor says, and not by signals.

    A signal may be sent to all processes at once, by a terminal or by systemd. Then the supervisor has it, too, and
    passes it on; heard twice, it would mean to stop at once.
    """

    def __init__(self, config: uvicorn.Config, proxy: WorkersProxy, post: Post) -> None:
        super().__init__(config, proxy, None, *post.listeners[1:])
        self._proxy = proxy
        self._channel = post.channel

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # they are left to do nothing, which the supervisor has arranged before this process was made

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_reader(self._channel.fileno(), self._listen_to_supervisor)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().shutdown(sockets)
        finally:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())

    def _announce(self, _listener: socket.socket) -> None:
        self._channel.tell(SERVING)

    def _listen_to_supervisor(self) -> None:
        messages = self._channel.hear()
        if messages is None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            logger.error("the supervisor is gone")
            if not self.is_stopping:  # else it would mean to stop at once
                self.handle_exit(signal.SIGINT, None)  # not SIGTERM, whose grace would keep others from the port
            return
        for word, about in messages:
            if word in (DRAIN, UNDRAIN):
                self._proxy.obey(about, is_draining=word == DRAIN)
            elif word == WATCHED:
                self._proxy.note_watched()
            elif word == SIGNAL and int(about) == signal.SIGHUP:
                self._proxy.reload()
            elif word == SIGNAL:
                self.handle_exit(int(about), None)
