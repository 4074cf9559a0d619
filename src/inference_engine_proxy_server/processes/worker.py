"""A worker process, which acts on the messages of its supervisor."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import uvicorn

from inference_engine_proxy_server.processes.channel import (
    ALIVE,
    DRAIN,
    HANDED_OVER,
    MOVE,
    READINESS_PROBED,
    RELOADED,
    ROSTER,
    SERVING,
    SIGNAL,
    UNDRAIN,
)
from inference_engine_proxy_server.processes.host import Host, Hosted
from inference_engine_proxy_server.processes.process_context import WorkerContext
from inference_engine_proxy_server.processes.pulse import Pulse

__all__ = ["Worker"]

logger = logging.getLogger(__name__)


class Worker(Host):
    """A host that acts on its supervisor's messages instead of signals.

    A terminal or systemd may send a signal to all processes at once. The supervisor receives the signal, too, and
    forwards it; a worker that received it twice would stop immediately.
    """

    def __init__(self, config: uvicorn.Config, hosted: Hosted, context: WorkerContext) -> None:
        super().__init__(config, hosted, [one for some in context.listeners[1:] for one in some])
        self._channel = context.channel
        self._roster = context.roster
        self._pulse = Pulse(context.beat_seconds, lambda: self._channel.send(ALIVE))

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # the worker inherits handlers from the supervisor that do nothing

    def _on_serving(self, loop: asyncio.AbstractEventLoop, listeners: Sequence[socket.socket]) -> None:
        del listeners
        loop.add_reader(self._channel.fileno(), self._handle_messages)
        self._channel.send(SERVING)
        self._pulse.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().shutdown(sockets)
        finally:
            self._pulse.stop()
            asyncio.get_running_loop().remove_reader(self._channel.fileno())

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
                self._hosted.obey(argument, is_draining=word != UNDRAIN, moves=word == MOVE)
            elif word == ROSTER:
                self._roster.follow(argument)
            elif word == READINESS_PROBED:
                self._hosted.record_readiness_probe()
            elif word == HANDED_OVER:
                self.hand_over()
            elif word == SIGNAL and int(argument) == signal.SIGHUP:
                self._hosted.reload()
                self._channel.send(RELOADED)
            elif word == SIGNAL:
                self.handle_exit(int(argument), None)
