"""Parent process of the workers: starts them, replaces those that die, and distributes messages.

The supervisor serves no requests and has neither an event loop nor threads, so that it can fork at any time. It keeps
all listening sockets open: when a worker dies, its replacement accepts the connections that were waiting.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.processes.channel import (
    DRAIN,
    JOINED,
    LEFT,
    MOVE,
    READINESS_PROBED,
    ROSTER,
    SERVING,
    SIGNAL,
    UNDRAIN,
    Channel,
)
from inference_engine_proxy_server.processes.conversation_memory import ConversationMemory
from inference_engine_proxy_server.processes.host import SharedPort
from inference_engine_proxy_server.processes.process_context import WorkerContext
from inference_engine_proxy_server.processes.roster import Roster
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.processes.siblings import Siblings, inboxes
from inference_engine_proxy_server.processes.worker_slot import WorkerProcess, WorkerSlot

__all__ = ["Supervisor"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_MOST_URLS = 2000  # that are remembered; where backends come and go, nobody knows how many there will be
_FLEET_CHECK_SECONDS = 1.0  # between two checks of the fleet for changes
_EARLY_SECONDS = 10.0  # a worker that ends sooner after its start will probably end again
_LONGEST_PAUSE_SECONDS = 30.0

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs the workers.

    Args:
        configuration: with the initial fleet.
        ports: PORT and, if set, ADMIN_PORT.
        serve: runs in each worker process until the worker is stopped; returns the exit code.
        read_again: returns the configuration if it is valid and has changed since the last call. Raises nothing.
        on_started: called once, when all workers serve.
        roster: the backends that join while the proxy runs; ``None`` for an empty one.
    """

    def __init__(
        self,
        configuration: Configuration,
        ports: Sequence[SharedPort],
        serve: Callable[[WorkerContext], int],
        read_again: Callable[[], Configuration | None],
        on_started: Callable[[], None],
        roster: Roster | None = None,
    ) -> None:
        self._configuration = configuration
        self._ports = ports
        self._serve = serve
        self._read_again = read_again
        self._on_started = on_started
        self._roster = roster or Roster()
        self._urls: dict[str, None] = {}  # of backends of workers, past and present; the latest are the last
        self._drained_urls: set[str] = set()
        self._has_started = self._is_stopping = False
        self._exit_code = 0
        self._service = secrets.token_hex(6)
        self._shared_leases = SharedLeases(configuration.settings.workers)
        self._conversations = ConversationMemory()
        self._workers = [
            WorkerSlot(number, inbox) for number, inbox in enumerate(inboxes(configuration.settings.workers))
        ]
        self._inboxes = [worker.inbox.getsockname() for worker in self._workers]
        # Not epoll, whose registrations would be shared with every forked process.
        self._selector = selectors.PollSelector()

    def run(self) -> int:
        """Keep the workers running until SIGINT or SIGTERM; returns this process's exit code."""
        gc.freeze()  # existing objects are never collected, so that their memory pages stay shared with the workers
        with _wakeup() as self._wakeup:
            self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_signals)
            while True:
                self._start_due_workers()
                if not any(worker.process or worker.starts_at is not None for worker in self._workers):
                    return self._exit_code
                for key, _ in self._selector.select(_FLEET_CHECK_SECONDS):
                    key.data()
                self._check_fleet()

    # --- signals, messages and fleet changes

    def _on_signals(self) -> None:
        for number in self._wakeup.recv(4096):
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                self._send_to_all(SIGNAL, str(number))
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._stop(number)

    def _on_message(self, worker: WorkerSlot, process: WorkerProcess) -> None:
        if worker.process is not process:  # its end was handled in the same round
            return
        messages = process.channel.receive()
        if messages is None:  # the process is ending; SIGCHLD will follow
            self._selector.unregister(process.channel)
            return
        for word, argument in messages:
            if word == SERVING:
                process.serves = True
                self._on_serving(worker)
            elif word in (JOINED, LEFT):
                self._note_backend(argument, has_joined=word == JOINED)
            elif word in (DRAIN, UNDRAIN, MOVE, READINESS_PROBED):
                if word in (DRAIN, MOVE):
                    self._drained_urls.add(argument)
                elif word == UNDRAIN:
                    self._drained_urls.discard(argument)
                self._send_to_all(word, argument)
            elif word == ROSTER:
                self._send_to_all(ROSTER, self._roster.carry_out(argument))

    def _note_backend(self, url: str, *, has_joined: bool) -> None:
        if not has_joined:
            self._drained_urls.discard(url)  # as in the workers: if it joins again, it is not drained
            return
        self._urls.pop(url, None)
        self._urls[url] = None
        if len(self._urls) > _MOST_URLS:
            del self._urls[next(iter(self._urls))]

    def _on_serving(self, worker: WorkerSlot) -> None:
        if self._has_started:
            logger.info("worker %d serves again", worker.number)
        elif all(other.serves for other in self._workers):
            self._has_started = True
            self._on_started()

    def _check_fleet(self) -> None:
        self._roster.end_leases(time.monotonic())
        changed = self._read_again()
        if changed is not None:
            self._configuration = self._configuration.with_fleet_of(changed)

    def _send_to_all(self, word: str, argument: str) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.channel.send(word, argument)

    def _stop(self, number: int) -> None:
        self._is_stopping = True
        for worker in self._workers:
            worker.close_listeners()  # a connection must not wait on a socket that its worker has closed
            worker.starts_at = None
        self._send_to_all(SIGNAL, str(number))

    # --- ended processes

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                pid, status = os.waitpid(worker.process.pid, os.WNOHANG)
                if pid:
                    self._on_end(worker, worker.process, os.waitstatus_to_exitcode(status))

    def _on_end(self, worker: WorkerSlot, process: WorkerProcess, code: int) -> None:
        if process.channel in self._selector.get_map():
            self._on_message(worker, process)  # its last messages
        if process.channel in self._selector.get_map():
            self._selector.unregister(process.channel)
        process.channel.close()
        worker.process = None
        self._shared_leases.clear(worker.number, self._urls)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._is_stopping:
            if code:
                logger.error("worker %d ended with %s", worker.number, how)
                self._exit_code = 1
        elif not process.serves and not (self._has_started and any(other.serves for other in self._workers)):
            logger.error("worker %d could not start: it ended with %s", worker.number, how)
            self._exit_code = 1
            for _ in range(2):  # the second signal makes them stop immediately
                self._stop(signal.SIGINT)
        else:
            self._schedule_restart(worker, f"worker {worker.number} ended with {how}")

    def _schedule_restart(self, worker: WorkerSlot, reason: str) -> None:
        now = time.monotonic()
        worker.early_ends = worker.early_ends + 1 if now - worker.started_at < _EARLY_SECONDS else 0
        # A single early end may be chance, so no pause follows it.
        pause = 0.0 if worker.early_ends <= 1 else min(_LONGEST_PAUSE_SECONDS, 2.0 ** (worker.early_ends - 2))
        worker.starts_at = now + pause
        if pause:
            worker.close_listeners()
            logger.error("%s; its replacement starts in %g s", reason, pause)
        else:
            logger.error("%s; its replacement starts now", reason)

    # --- new processes

    def _start_due_workers(self) -> None:
        for worker in self._workers:
            if worker.starts_at is not None and time.monotonic() >= worker.starts_at:
                worker.starts_at, worker.started_at = None, time.monotonic()
                self._check_fleet()  # a new worker does not check for changes made before its start
                try:
                    self._start(worker)
                except OSError as error:  # out of memory or processes, or another program has the port
                    message = f"worker {worker.number} cannot be started: {error.strerror or error}"
                    self._schedule_restart(worker, message)

    def _start(self, worker: WorkerSlot) -> None:
        worker.listeners = worker.listeners or tuple(port.listener() for port in self._ports)
        ours, theirs = Channel.pair()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # otherwise the child would write the buffered text again
        # Until the child has closed the wakeup pipe, its signals would look like signals to this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._become_worker(worker, ours, theirs, before)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        worker.process = process = WorkerProcess(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, partial(self._on_message, worker, process))

    def _become_worker(
        self, worker: WorkerSlot, supervisors: Channel, own: Channel, mask: set[int | signal.Signals]
    ) -> NoReturn:
        """Run the child process; never returns, because the caller's code is the supervisor's."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            supervisors.close()
            self._wakeup.close()
            for other in self._workers:
                if other is not worker:
                    other.close_listeners()
                    other.inbox.close()
                    if other.process is not None:
                        other.process.channel.close()
            context = WorkerContext(
                self._configuration,
                worker.listeners,
                own,
                Siblings(self._inboxes, worker.number),
                worker.inbox,
                self._service,
                self._shared_leases,
                self._conversations,
                frozenset(self._drained_urls),
                self._roster.copy(),
            )
            code = self._serve(context)
        except SystemExit as end:  # uvicorn exits this way when it cannot start
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            logger.exception("worker %d crashed", worker.number)
        finally:
            os._exit(code)


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
