"""Parent process of the workers: keeps them running, and distributes signals and messages.

The supervisor serves no requests and has neither an event loop nor threads, so that it can fork at any time. It keeps
all listening sockets open: when a worker dies, its replacement accepts the connections that were waiting.
"""

from __future__ import annotations

import gc
import logging
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.processes.channel import (
    ALIVE,
    DRAIN,
    HANDED_OVER,
    JOINED,
    LEFT,
    MOVE,
    READINESS_PROBED,
    RELOADED,
    ROSTER,
    SERVING,
    SIGNAL,
    UNDRAIN,
    Channel,
)
from inference_engine_proxy_server.processes.conversation_memory import ConversationMemory
from inference_engine_proxy_server.processes.ports import Port
from inference_engine_proxy_server.processes.predecessor import Predecessor
from inference_engine_proxy_server.processes.process_context import WorkerContext
from inference_engine_proxy_server.processes.reloads import Reloads
from inference_engine_proxy_server.processes.service_manager import STOP_MARGIN_SECONDS, ServiceManager
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.processes.siblings import Siblings
from inference_engine_proxy_server.processes.standing_commands import StandingCommands
from inference_engine_proxy_server.processes.upgrade import Upgrade
from inference_engine_proxy_server.processes.worker_processes import WorkerProcesses
from inference_engine_proxy_server.processes.worker_slot import WorkerProcess, WorkerSlot

__all__ = ["Supervisor"]

_MOST_URLS = 2000  # that are remembered; where backends come and go, nobody knows how many there will be
_CHECK_SECONDS = 1.0  # between two checks of the fleet for changes
_PASSED_ON = (DRAIN, UNDRAIN, MOVE, ROSTER, READINESS_PROBED)

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs the workers.

    Args:
        configuration: with the initial fleet.
        ports: PORT and, if set, ADMIN_PORT.
        serve: runs in each worker process until the worker is stopped; returns the exit code.
        read_again: returns the configuration if it is valid and has changed since the last call. Raises nothing.
        on_started: called once, when all workers serve; returns the status for the service manager.
        commands: of operators, which are in force from the beginning; ``None`` for none.
        manager: receives the state of the program; ``None`` if there is none.
        predecessor: the program that this one replaces, if any.
        command: starts the installed version; empty if this program cannot be upgraded.
    """

    def __init__(
        self,
        configuration: Configuration,
        ports: Sequence[Port],
        serve: Callable[[WorkerContext], int],
        read_again: Callable[[], Configuration | None],
        on_started: Callable[[], str],
        commands: StandingCommands | None = None,
        manager: ServiceManager | None = None,
        predecessor: Predecessor | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self._configuration = configuration
        self._read_again = read_again
        self._on_started = on_started
        self._commands = commands or StandingCommands()
        self._manager = manager or ServiceManager()
        self._predecessor = predecessor
        self._urls: dict[str, None] = {}  # of backends of workers, past and present; the latest are the last
        self._has_started = self._is_stopping = False
        self._exit_code = 0
        self._status = ""
        self._service = secrets.token_hex(6)
        count = configuration.settings.workers
        self._shared_leases = SharedLeases(count)
        self._conversations = ConversationMemory()
        self._workers = WorkerProcesses(
            count, ports, serve, self._context_of, self._close_in_child, self._watch_worker,
            self._manager.watchdog_seconds,
        )  # fmt: skip
        self._inboxes = [slot.inbox.getsockname() for slot in self._workers.slots]
        # Not epoll, whose registrations would be shared with every forked process.
        self._selector = selectors.PollSelector()
        self._upgrade = Upgrade(
            command, ports, self._commands, self._manager, self._watch, self._unwatch, self._on_handed_over
        )
        self._reloads = Reloads(self._manager)
        self._beat_at = 0.0

    def run(self) -> int:
        """Keep the workers running until SIGINT or SIGTERM; returns this process's exit code."""
        gc.freeze()  # existing objects are never collected, so that their memory pages stay shared with the workers
        with _wakeup() as self._wakeup:
            self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_signals)
            if self._predecessor is not None:
                self._watch(self._predecessor.channel, partial(self._on_predecessor, self._predecessor.channel))
            while True:
                for slot in self._workers.due():
                    self._check_fleet()  # a new worker does not check for changes made before its start
                    self._workers.start(slot)
                if self._workers.have_ended:
                    return self._exit_code
                for key, _ in self._selector.select(min(_CHECK_SECONDS, self._manager.beat_seconds or _CHECK_SECONDS)):
                    key.data()
                self._check()

    def _check(self) -> None:
        self._check_fleet()
        self._upgrade.check()
        self._reloads.check()
        self._workers.end_frozen()
        now, beat_seconds = time.monotonic(), self._manager.beat_seconds
        if beat_seconds is not None and now >= self._beat_at:
            self._beat_at = now + beat_seconds
            self._manager.is_alive()

    def _check_fleet(self) -> None:
        self._commands.roster.end_leases(time.monotonic())
        changed = self._read_again()
        if changed is not None:
            self._configuration = self._configuration.with_fleet_of(changed)

    # --- channels

    def _watch(self, channel: Channel, on_messages: Callable[[], None]) -> None:
        self._selector.register(channel, selectors.EVENT_READ, on_messages)

    def _unwatch(self, channel: Channel) -> None:
        if channel in self._selector.get_map():
            self._selector.unregister(channel)

    def _watch_worker(self, slot: WorkerSlot, process: WorkerProcess) -> None:
        self._watch(process.channel, partial(self._on_worker, slot, process))

    def _close_in_child(self) -> None:
        self._wakeup.close()
        self._upgrade.close_in_child()
        if self._predecessor is not None:
            self._predecessor.channel.close()

    def _context_of(self, slot: WorkerSlot, channel: Channel) -> WorkerContext:
        return WorkerContext(
            self._configuration,
            slot.listeners,
            channel,
            Siblings(self._inboxes, slot.number),
            slot.inbox,
            self._service,
            self._shared_leases,
            self._conversations,
            frozenset(self._commands.drained_urls),
            self._commands.roster.copy(),
            self._manager.beat_seconds,
        )

    # --- signals and messages

    def _on_signals(self) -> None:
        for number in self._wakeup.recv(4096):
            if number == signal.SIGCHLD:
                for slot, process, code in self._workers.ended():
                    self._on_end(slot, process, code)
            elif number == signal.SIGHUP:
                self._workers.send_to_all(SIGNAL, str(number))
                self._reloads.begin([slot.number for slot in self._workers.slots if slot.serves], self._status)
            elif number == signal.SIGUSR2:
                if self._has_started and not self._is_stopping:
                    self._upgrade.begin(self._status)
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._stop(number)

    def _on_worker(self, slot: WorkerSlot, process: WorkerProcess) -> None:
        if slot.process is not process:  # its end was handled in the same round
            return
        messages = process.channel.receive()
        if messages is None:  # the process is ending; SIGCHLD will follow
            self._unwatch(process.channel)
            return
        for word, argument in messages:
            if word == SERVING:
                process.serves = True
                self._on_serving(slot)
            elif word == ALIVE:
                process.alive_at = time.monotonic()
            elif word == RELOADED:
                self._reloads.end(slot.number)
            elif word in (JOINED, LEFT):
                self._note_backend(argument, has_joined=word == JOINED)
            elif word in _PASSED_ON:
                self._upgrade.pass_on(word, argument)
                self._workers.send_to_all(word, self._commands.carry_out(word, argument))

    def _on_predecessor(self, channel: Channel) -> None:
        """Carry out what the predecessor passes on, from its connections that are still open."""
        messages = channel.receive()
        if messages is None:
            self._unwatch(channel)
            channel.close()
            logger.info("the previous program has ended")
            return
        for word, argument in messages:
            if word == HANDED_OVER:
                self._manager.ready(self._status)  # what was said before counted for nothing
            elif word in _PASSED_ON:
                self._workers.send_to_all(word, self._commands.carry_out(word, argument))

    def _note_backend(self, url: str, *, has_joined: bool) -> None:
        if not has_joined:
            self._commands.forget(url)  # as in the workers
            return
        self._urls.pop(url, None)
        self._urls[url] = None
        if len(self._urls) > _MOST_URLS:
            del self._urls[next(iter(self._urls))]

    # --- what happens to the program

    def _on_serving(self, slot: WorkerSlot) -> None:
        if self._has_started:
            logger.info("worker %d serves again", slot.number)
        elif all(other.serves for other in self._workers.slots):
            self._has_started = True
            self._status = self._on_started()
            self._manager.ready(self._status)
            if self._predecessor is not None:
                self._predecessor.channel.send(SERVING)

    def _on_handed_over(self) -> None:
        self._is_stopping = True
        self._workers.start_no_more()
        self._workers.send_to_all(HANDED_OVER)

    def _stop(self, number: int) -> None:
        settings = self._configuration.settings
        if not self._is_stopping:
            self._upgrade.abort()
            seconds = settings.drain_grace_seconds + settings.drain_timeout_seconds + STOP_MARGIN_SECONDS
            self._manager.stopping("stopping: requests in progress may finish", seconds)
        self._is_stopping = True
        self._workers.start_no_more()
        self._workers.send_to_all(SIGNAL, str(number))

    def _on_end(self, slot: WorkerSlot, process: WorkerProcess, code: int) -> None:
        if process.channel in self._selector.get_map():
            self._on_worker(slot, process)  # its last messages
        self._unwatch(process.channel)
        process.channel.close()
        slot.process = None
        self._reloads.end(slot.number)
        self._shared_leases.clear(slot.number, self._urls)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._is_stopping:
            if code:
                logger.error("worker %d ended with %s", slot.number, how)
                self._exit_code = 1
        elif not process.serves and not (self._has_started and any(other.serves for other in self._workers.slots)):
            logger.error("worker %d could not start: it ended with %s", slot.number, how)
            self._exit_code = 1
            for _ in range(2):  # the second signal makes them stop immediately
                self._stop(signal.SIGINT)
        else:
            self._workers.schedule_restart(slot, f"worker {slot.number} ended with {how}")


@contextmanager
def _wakeup() -> Iterator[socket.socket]:
    """Yield a socket from which the number of each received signal can be read."""
    signal.signal(signal.SIGCHLD, lambda *_: None)  # signals without a Python handler are not written to the socket
    inside, outside = socket.socketpair()
    with inside, outside:
        inside.setblocking(False)
        outside.setblocking(False)
        signal.set_wakeup_fd(inside.fileno())
        try:
            yield outside
        finally:
            signal.set_wakeup_fd(-1)
