"""The worker processes: starts them, notices their ends, and replaces those that have died or stand still."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from inference_engine_proxy_server.processes.channel import Channel
from inference_engine_proxy_server.processes.ports import Port
from inference_engine_proxy_server.processes.process_context import WorkerContext
from inference_engine_proxy_server.processes.siblings import inboxes
from inference_engine_proxy_server.processes.worker_slot import WorkerProcess, WorkerSlot

__all__ = ["SIGNALS", "WorkerProcesses"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)
"""The signals that the supervisor acts on."""

_EARLY_SECONDS = 10.0  # a worker that ends sooner after its start will probably end again
_LONGEST_PAUSE_SECONDS = 30.0
_ABORT_SECONDS = 2.0  # for a worker that stands still to log where; a stopped process cannot
_MOST_LATE_SECONDS = 3.0  # if this process itself is later than that, so are the signs of life that it has not read

logger = logging.getLogger(__name__)


class WorkerProcesses:
    """The workers, by number.

    Args:
        count: how many there are.
        ports: they accept connections from.
        serve: runs in each worker process until the worker is stopped; returns the exit code.
        context_of: what a worker inherits, given its slot and its end of the channel.
        close_in_child: closes what a forked process does not need.
        on_started: called with each new process.
        patience_seconds: a worker without a sign of life for so long is replaced; ``None``: never.

    Attributes:
        slots: one for each worker.
    """

    def __init__(
        self,
        count: int,
        ports: Sequence[Port],
        serve: Callable[[WorkerContext], int],
        context_of: Callable[[WorkerSlot, Channel], WorkerContext],
        close_in_child: Callable[[], None],
        on_started: Callable[[WorkerSlot, WorkerProcess], None],
        patience_seconds: float | None,
    ) -> None:
        self.slots = [WorkerSlot(number, inbox) for number, inbox in enumerate(inboxes(count))]
        self._ports = ports
        self._serve = serve
        self._context_of = context_of
        self._close_in_child = close_in_child
        self._on_started = on_started
        self._patience_seconds = patience_seconds
        self._checked_at = time.monotonic()

    @property
    def have_ended(self) -> bool:
        """No worker lives, and none is due to start."""
        return not any(slot.process or slot.starts_at is not None for slot in self.slots)

    def send_to_all(self, word: str, argument: str = "") -> None:
        """Send a message to each living worker."""
        for slot in self.slots:
            if slot.process is not None:
                slot.process.channel.send(word, argument)

    def start_no_more(self) -> None:
        """Let the workers end: no connection must wait on a socket that its worker has closed."""
        for slot in self.slots:
            self._close_listeners(slot)
            slot.starts_at = None

    # --- ended and frozen processes

    def ended(self) -> list[tuple[WorkerSlot, WorkerProcess, int]]:
        """The processes that have ended since the last call, with their exit codes, as from ``subprocess``."""
        found = []
        for slot in self.slots:
            if slot.process is not None:
                pid, status = os.waitpid(slot.process.pid, os.WNOHANG)
                if pid:
                    found.append((slot, slot.process, os.waitstatus_to_exitcode(status)))
        return found

    def end_frozen(self) -> None:
        """End the workers whose event loops stand still; their replacements accept the connections that wait."""
        now = time.monotonic()
        was_late, self._checked_at = now - self._checked_at > _MOST_LATE_SECONDS, now
        for slot in self.slots:
            process = slot.process
            if process is None or process.alive_at is None or self._patience_seconds is None:
                continue
            if was_late:
                process.alive_at = now
            elif process.aborted_at is not None:
                if now - process.aborted_at >= _ABORT_SECONDS:
                    os.kill(process.pid, signal.SIGKILL)
            elif now - process.alive_at > self._patience_seconds:
                process.aborted_at = now
                logger.error(
                    "worker %d shows no sign of life for %g s and is ended", slot.number, now - process.alive_at
                )
                os.kill(process.pid, signal.SIGABRT)

    def schedule_restart(self, slot: WorkerSlot, reason: str) -> None:
        """Replace a process that has ended, or could not be started."""
        now = time.monotonic()
        slot.early_ends = slot.early_ends + 1 if now - slot.started_at < _EARLY_SECONDS else 0
        # A single early end may be chance, so no pause follows it.
        pause = 0.0 if slot.early_ends <= 1 else min(_LONGEST_PAUSE_SECONDS, 2.0 ** (slot.early_ends - 2))
        slot.starts_at = now + pause
        if pause:
            self._close_listeners(slot)
            logger.error("%s; its replacement starts in %g s", reason, pause)
        else:
            logger.error("%s; its replacement starts now", reason)

    def _close_listeners(self, slot: WorkerSlot) -> None:
        for port, listeners in zip(self._ports, slot.listeners, strict=False):
            port.close(listeners)
        slot.listeners = ()

    # --- new processes

    def due(self) -> list[WorkerSlot]:
        """The workers that should start now."""
        now = time.monotonic()
        return [slot for slot in self.slots if slot.starts_at is not None and now >= slot.starts_at]

    def start(self, slot: WorkerSlot) -> None:
        """Start a worker's process, or try again later."""
        slot.starts_at, slot.started_at = None, time.monotonic()
        try:
            self._fork(slot)
        except OSError as error:  # out of memory or processes, or another program has the port
            self.schedule_restart(slot, f"worker {slot.number} cannot be started: {error.strerror or error}")

    def _fork(self, slot: WorkerSlot) -> None:
        slot.listeners = slot.listeners or tuple(port.listeners(slot.number) for port in self._ports)
        ours, theirs = Channel.pair()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # otherwise the child would write the buffered text again
        # Until the child has closed the wakeup pipe, its signals would look like signals to this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._become_worker(slot, ours, theirs, before)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        slot.process = WorkerProcess(pid, ours)
        self._on_started(slot, slot.process)

    def _become_worker(
        self, slot: WorkerSlot, supervisors: Channel, own: Channel, mask: set[int | signal.Signals]
    ) -> NoReturn:
        """Run the child process; never returns, because the caller's code is the supervisor's."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            supervisors.close()
            self._close_in_child()
            for other in self.slots:
                if other is not slot:
                    self._close_listeners(other)
                    other.inbox.close()
                    if other.process is not None:
                        other.process.channel.close()
            code = self._serve(self._context_of(slot, own))
        except SystemExit as end:  # uvicorn exits this way when it cannot start
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            logger.exception("worker %d crashed", slot.number)
        finally:
            os._exit(code)
