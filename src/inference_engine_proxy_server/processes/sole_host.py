"""The host of a proxy that is a single process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial

import uvicorn

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.processes.channel import (
    DRAIN,
    HANDED_OVER,
    MOVE,
    READINESS_PROBED,
    ROSTER,
    SERVING,
    UNDRAIN,
    Channel,
)
from inference_engine_proxy_server.processes.host import Host, Hosted
from inference_engine_proxy_server.processes.launch import Launch
from inference_engine_proxy_server.processes.ports import Port, announce, url_of
from inference_engine_proxy_server.processes.process_context import SoleProcess
from inference_engine_proxy_server.processes.pulse import Pulse
from inference_engine_proxy_server.processes.service_manager import STOP_MARGIN_SECONDS
from inference_engine_proxy_server.processes.upgrade import Upgrade

__all__ = ["SoleHost"]

logger = logging.getLogger(__name__)


class SoleHost(Host):
    """A host that acts on signals, reports to the service manager, and can be upgraded.

    Args:
        config: of uvicorn.
        hosted: the application.
        process: its context.
        ports: PORT and, if set, ADMIN_PORT; empty if the sockets are given to ``run``.
        on_started: called with the base URL when the proxy answers requests.
        launch: how this program was started.
        reloads: whether SIGHUP reads the settings again.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        hosted: Hosted,
        process: SoleProcess,
        ports: Sequence[Port] = (),
        on_started: Callable[[str], None] | None = None,
        launch: Launch | None = None,
        *,
        reloads: bool = False,
    ) -> None:
        launch = launch or Launch()
        super().__init__(config, hosted, [one for port in ports[1:] for one in port.listeners(0)])
        self._process = process
        self._on_started = on_started
        self._manager = launch.manager
        self._channel = launch.predecessor.channel if launch.predecessor is not None else None
        self._pulse = Pulse(self._manager.beat_seconds, self._manager.is_alive)
        self._upgrade = Upgrade(
            launch.command, ports, process.commands, self._manager, _watch, _unwatch, on_handed_over=self.hand_over
        )
        process.pass_on = self._upgrade.pass_on
        self._reloads = reloads
        self._status = ""

    def _on_serving(self, loop: asyncio.AbstractEventLoop, listeners: Sequence[socket.socket]) -> None:
        with contextlib.suppress(RuntimeError, ValueError):  # only the main thread can handle signals
            if self._reloads:
                loop.add_signal_handler(signal.SIGHUP, self._reload)
            loop.add_signal_handler(signal.SIGUSR2, self._begin_upgrade)
        urls = [url_of(one.getsockname(), is_tls=self.config.is_ssl) for one in (*listeners[:1], *self._operators[:1])]
        self._status = f"listening on {urls[0]}, version {__version__}" if urls else "serving"
        self._manager.ready(self._status)
        self._pulse.start()
        if self._channel is not None:
            _watch(self._channel, partial(self._on_messages, self._channel))
            self._channel.send(SERVING)
        if urls:
            announce(urls[0], urls[1] if self._operators else None, self._on_started)

    async def on_tick(self, counter: int) -> bool:
        self._upgrade.check()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().shutdown(sockets)
        finally:
            self._pulse.stop()

    def _on_stopping(self, seconds: float) -> None:
        self._upgrade.abort()
        self._manager.stopping("stopping: requests in progress may finish", seconds + STOP_MARGIN_SECONDS)

    def _begin_upgrade(self) -> None:
        if not self.is_stopping:
            self._upgrade.begin(self._status)

    def _reload(self) -> None:
        self._manager.reloading("reading the settings again")
        self._hosted.reload()
        self._manager.ready(self._status)

    def _on_messages(self, channel: Channel) -> None:
        """Carry out what the predecessor passes on, from its connections that are still open."""
        messages = channel.receive()
        if messages is None:
            _unwatch(channel)
            channel.close()
            logger.info("the previous program has ended")
            return
        for word, argument in messages:
            if word == HANDED_OVER:
                self._manager.ready(self._status)  # what was said before counted for nothing
            elif word == READINESS_PROBED:
                self._hosted.record_readiness_probe()
            elif word in (DRAIN, UNDRAIN, MOVE, ROSTER):
                self._process.commands.carry_out(word, argument)
                if word != ROSTER:
                    self._hosted.obey(argument, is_draining=word != UNDRAIN, moves=word == MOVE)


def _watch(channel: Channel, on_messages: Callable[[], None]) -> None:
    asyncio.get_running_loop().add_reader(channel.fileno(), on_messages)


def _unwatch(channel: Channel) -> None:
    asyncio.get_running_loop().remove_reader(channel.fileno())
