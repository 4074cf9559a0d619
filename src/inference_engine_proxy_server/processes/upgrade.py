"""Replaces the running program: starts the installed version, and lets it take over the listening sockets.

Both programs have the same sockets, so no connection is refused at any time. This one serves until the new one does,
and goes on if the new one does not: the start of a broken version costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from inference_engine_proxy_server.processes.channel import HANDED_OVER, SERVING, Channel
from inference_engine_proxy_server.processes.ports import Port
from inference_engine_proxy_server.processes.predecessor import TAKEOVER, Handover
from inference_engine_proxy_server.processes.service_manager import ServiceManager
from inference_engine_proxy_server.processes.standing_commands import StandingCommands

__all__ = ["Upgrade"]

_START_SECONDS = 60.0  # in which the new program must serve
_SHELL_SECONDS = 10.0
# The shell ends at once, so that the new program is adopted by the first process of the system: a service manager
# learns of the end of its own children only. Standard input is a pipe to write to. SIGUSR2
# would end a program that is not ready for it yet.
_IN_BACKGROUND = 'trap "" USR2; "$@" 0</dev/null & echo $! >&0'

logger = logging.getLogger(__name__)


class Upgrade:
    """The upgrade of this program, which an operator asks for at some time.

    Args:
        command: starts the installed version; empty if this program cannot be upgraded.
        ports: with the sockets that the new program takes over.
        commands: of operators, which the new program adopts.
        manager: receives the process id of the service.
        watch, unwatch: call a function whenever a channel has messages, and no more.
        on_handed_over: called when the new program serves.

    Attributes:
        is_handed_over: the new program serves, and this one finishes its requests.
    """

    def __init__(
        self,
        command: Sequence[str],
        ports: Sequence[Port],
        commands: StandingCommands,
        manager: ServiceManager,
        watch: Callable[[Channel, Callable[[], None]], None],
        unwatch: Callable[[Channel], None],
        on_handed_over: Callable[[], None],
    ) -> None:
        self.is_handed_over = False
        self._command = command
        self._ports = ports
        self._commands = commands
        self._manager = manager
        self._watch, self._unwatch = watch, unwatch
        self._on_handed_over = on_handed_over
        self._channel: Channel | None = None  # to the new program, while it lives
        self._pid = 0
        self._gives_up_at = 0.0

    def begin(self, status: str) -> None:
        """Start the new program; ``status`` is what this one reports if the new one fails."""
        problem = self._obstacle()
        if problem:
            logger.error("upgrade: %s", problem)
            return
        self._status = status
        logger.info("upgrade: starting %s", shlex.join(self._command))
        self._manager.reloading("upgrading: waiting for the new program")
        try:
            self._pid, channel = self._start()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._fail(f"the new program cannot be started: {error}")
            return
        self._channel = channel
        self._gives_up_at = time.monotonic() + _START_SECONDS
        self._watch(channel, partial(self._on_messages, channel))

    def _obstacle(self) -> str:
        if self.is_handed_over:
            return "another program has taken over already"
        if self._channel is not None:
            return "the new program is starting already"
        if not self._command:
            return "the demo cannot be upgraded"
        if os.getpid() == 1:
            return "this is the first process of a container, which ends with it: start a new container instead"
        return ""

    def _start(self) -> tuple[int, Channel]:
        ours, theirs = Channel.pair()
        state = os.memfd_create("commands")
        try:
            os.write(state, self._commands.as_json().encode())
            sockets = {port.name: [one.fileno() for one in port.open_sockets] for port in self._ports}
            own = [port.name for port in self._ports if port.is_own]
            handover = Handover(theirs.fileno(), state, sockets, own)
            # Another process would ignore a watchdog that is meant for this one.
            environ = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
            environ[TAKEOVER] = json.dumps(handover.as_object())
            return _start_in_background(self._command, environ, handover.descriptors), ours
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(state)

    def _on_messages(self, channel: Channel) -> None:
        messages = channel.receive()
        if messages is None:
            self._forget(channel)
            if not self.is_handed_over:
                self._fail("the new program ended before it served")
            return
        if not self.is_handed_over and any(word == SERVING for word, _ in messages):
            self._hand_over(channel)

    def _hand_over(self, channel: Channel) -> None:
        self.is_handed_over = True
        self._commands.roster.stop_saving()
        self._manager.hand_over(self._pid, f"process {self._pid} has taken over")
        channel.send(HANDED_OVER)
        logger.info("upgrade: process %d serves from now on; requests in progress may finish here", self._pid)
        self._on_handed_over()

    def check(self) -> None:
        """Give up when the new program takes too long; called about once a second, or more often."""
        if self._channel is not None and not self.is_handed_over and time.monotonic() >= self._gives_up_at:
            self._give_up(self._channel)
            self._fail(f"the new program did not serve within {_START_SECONDS:g} s")

    def pass_on(self, word: str, argument: str) -> None:
        """Let the new program carry out a command that reached this one."""
        if self._channel is not None:
            self._channel.send(word, argument)

    def abort(self) -> None:
        """End a new program that does not serve yet, because this one stops."""
        if self._channel is not None and not self.is_handed_over:
            self._give_up(self._channel)
            logger.warning("upgrade: given up, because this program stops")

    def close_in_child(self) -> None:
        """Close the copies of a forked process."""
        if self._channel is not None:
            self._channel.close()

    def _give_up(self, channel: Channel) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may be ending
            os.kill(self._pid, signal.SIGKILL)  # it has not closed the channel, so the number is still its own
        self._forget(channel)

    def _forget(self, channel: Channel) -> None:
        self._unwatch(channel)
        channel.close()
        self._channel = None

    def _fail(self, reason: str) -> None:
        logger.error("upgrade: %s; this program continues", reason)
        self._manager.ready(f"{self._status}; the last upgrade failed: {reason}")


def _start_in_background(command: Sequence[str], environ: Mapping[str, str], descriptors: Sequence[int]) -> int:
    """Start ``command`` with these open files; returns its process id."""
    answer, into = os.pipe()
    with os.fdopen(answer, "rb") as stream:
        try:
            subprocess.run(  # noqa: S603 - the command that started this program
                ["/bin/sh", "-c", _IN_BACKGROUND, "sh", *command],
                env=environ, stdin=into, pass_fds=descriptors, check=True, timeout=_SHELL_SECONDS,
            )  # fmt: skip
        finally:
            os.close(into)
        return int(stream.readline())
