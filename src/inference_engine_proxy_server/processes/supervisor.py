"""The process above the workers: makes them, replaces those that die, and passes on what it is told.

It serves nothing, and has neither an event loop nor a thread, so that it can be copied at any time. It keeps all
sockets open: connections that wait for a worker that has died are taken by the one that comes after it.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.processes.channel import DRAIN, SERVING, SIGNAL, UNDRAIN, WATCHED, Channel
from inference_engine_proxy_server.processes.host import SharedPort
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.processes.siblings import Siblings, inboxes
from inference_engine_proxy_server.processes.worker import Post

__all__ = ["Supervisor"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_LOOK_SECONDS = 1.0  # between two looks whether the fleet has changed
_EARLY_SECONDS = 10.0  # a worker that ends sooner after its start will probably do so again
_LONGEST_PAUSE_SECONDS = 30.0

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Process:
    """A worker that lives; ``serves``: it accepts connections."""

    pid: int
    channel: Channel
    serves: bool = False


@dataclass(eq=False, slots=True)
class _Place:
    """One worker's place, whoever has it.

    Attributes:
        inbox: where its siblings ask it.
        listeners: its sockets; none while it waits for a worker, so that nobody waits there.
        process: who has it; ``None``: nobody.
        starts_at: when the next one is due; ``None``: none is wanted.
        started_at: when the last one was due.
        early_ends: how many in a row have ended soon after their start.
    """

    number: int
    inbox: socket.socket
    listeners: tuple[socket.socket, ...] = ()
    process: _Process | None = None
    starts_at: float | None = 0.0
    started_at: float = 0.0
    early_ends: int = 0

    @property
    def serves(self) -> bool:
        return self.process is not None and self.process.serves

    def close_listeners(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.listeners = ()


class Supervisor:
    """See above.

    Args:
        configuration: the one that the program started with.
        ports: PORT and, where there is one, ADMIN_PORT.
        serve: what a worker does, until it is told to stop; gives its exit code.
        read_again: the configuration, if it has changed since the last call and can be used. Raises nothing.
        on_started: called when all workers serve for the first time.
    """

    def __init__(
        self,
        configuration: Configuration,
        ports: Sequence[SharedPort],
        serve: Callable[[Post], int],
        read_again: Callable[[], Configuration | None],
        on_started: Callable[[], None],
    ) -> None:
        self._configuration = configuration
        self._ports = ports
        self._serve = serve
        self._read_again = read_again
        self._on_started = on_started
        self._urls = {backend.url for backend in configuration.fleet}  # of all that have ever been backends
        self._drained: set[str] = set()
        self._has_started = self._is_stopping = False
        self._exit_code = 0
        self._board = SharedLeases(configuration.settings.workers)
        self._places = [_Place(number, inbox) for number, inbox in enumerate(inboxes(configuration.settings.workers))]
        self._inboxes = [place.inbox.getsockname() for place in self._places]
        # Not epoll, whose registrations would be shared with every copy of this process.
        self._selector = selectors.PollSelector()

    def run(self) -> int:
        """Keep the workers going until SIGINT or SIGTERM; gives this process's exit code."""
        gc.freeze()  # what is there now is never collected, so that its pages stay shared with the workers
        with _wakeup() as self._wakeup:
            self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_signals)
            while True:
                self._start_those_due()
                if not any(place.process or place.starts_at is not None for place in self._places):
                    return self._exit_code
                for key, _ in self._selector.select(_LOOK_SECONDS):
                    key.data()
                self._look_at_fleet()

    # --- what it is told

    def _on_signals(self) -> None:
        for number in self._wakeup.recv(4096):
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                self._tell_all(SIGNAL, str(number))
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._stop(number)

    def _on_message(self, place: _Place, process: _Process) -> None:
        if place.process is not process:  # its end came to be known in the same moment
            return
        messages = process.channel.hear()
        if messages is None:  # it ends; the signal that it has ended tells how
            self._selector.unregister(process.channel)
            return
        for word, about in messages:
            if word == SERVING:
                process.serves = True
                self._on_serving(place)
            elif word in (DRAIN, UNDRAIN, WATCHED):
                if word == DRAIN:
                    self._drained.add(about)
                elif word == UNDRAIN:
                    self._drained.discard(about)
                self._tell_all(word, about)

    def _on_serving(self, place: _Place) -> None:
        if self._has_started:
            logger.info("worker %d serves again", place.number)
        elif all(other.serves for other in self._places):
            self._has_started = True
            self._on_started()

    def _look_at_fleet(self) -> None:
        changed = self._read_again()
        if changed is not None:
            self._configuration = self._configuration.with_fleet_of(changed)
            # As in the workers: what is taken out of the fleet and comes back is not drained.
            urls = {backend.url for backend in self._configuration.fleet}
            self._drained &= urls
            self._urls |= urls

    def _tell_all(self, word: str, about: str) -> None:
        for place in self._places:
            if place.process is not None:
                place.process.channel.tell(word, about)

    def _stop(self, number: int) -> None:
        self._is_stopping = True
        for place in self._places:
            place.close_listeners()  # a connection must not wait on a socket that its worker has closed
            place.starts_at = None
        self._tell_all(SIGNAL, str(number))

    # --- workers that end

    def _reap(self) -> None:
        for place in self._places:
            if place.process is not None:
                pid, status = os.waitpid(place.process.pid, os.WNOHANG)
                if pid:
                    self._on_end(place, place.process, os.waitstatus_to_exitcode(status))

    def _on_end(self, place: _Place, process: _Process, code: int) -> None:
        if process.channel in self._selector.get_map():
            self._on_message(place, process)  # what it said last
        if process.channel in self._selector.get_map():
            self._selector.unregister(process.channel)
        process.channel.close()
        place.process = None
        self._board.clear(place.number, self._urls)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._is_stopping:
            if code:
                logger.error("worker %d ended with %s", place.number, how)
                self._exit_code = 1
        elif not process.serves and not (self._has_started and any(other.serves for other in self._places)):
            logger.error("worker %d could not start: it ended with %s", place.number, how)
            self._exit_code = 1
            for _ in range(2):  # at once
                self._stop(signal.SIGINT)
        else:
            self._plan_next(place, f"worker {place.number} ended with {how}")

    def _plan_next(self, place: _Place, what: str) -> None:
        now = time.monotonic()
        place.early_ends = place.early_ends + 1 if now - place.started_at < _EARLY_SECONDS else 0
        # The first time may be chance.
        pause = 0.0 if place.early_ends <= 1 else min(_LONGEST_PAUSE_SECONDS, 2.0 ** (place.early_ends - 2))
        place.starts_at = now + pause
        if pause:
            place.close_listeners()
            logger.error("%s; another one takes its place in %g s", what, pause)
        else:
            logger.error("%s; another one takes its place", what)

    # --- workers that start

    def _start_those_due(self) -> None:
        for place in self._places:
            if place.starts_at is not None and time.monotonic() >= place.starts_at:
                place.starts_at, place.started_at = None, time.monotonic()
                self._look_at_fleet()  # what is older than a worker counts as known to it
                try:
                    self._start(place)
                except OSError as error:  # no memory or no process left, or somebody else has the port
                    self._plan_next(place, f"worker {place.number} cannot be started: {error.strerror or error}")

    def _start(self, place: _Place) -> None:
        place.listeners = place.listeners or tuple(port.listener() for port in self._ports)
        ours, theirs = Channel.pair()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # else a copy would write it once more
        # A signal that comes to the copy before it has let go of the pipe would be taken for one to this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._be_worker(place, ours, theirs, before)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        place.process = process = _Process(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, partial(self._on_message, place, process))

    def _be_worker(
        self, place: _Place, supervisors: Channel, own: Channel, mask: set[int | signal.Signals]
    ) -> NoReturn:
        """What the copy does, which must never come back to where the supervisor goes on."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            supervisors.close()
            self._wakeup.close()
            for other in self._places:
                if other is not place:
                    other.close_listeners()
                    other.inbox.close()
                    if other.process is not None:
                        other.process.channel.close()
            siblings = Siblings(self._inboxes, place.number)
            drained = frozenset(self._drained)
            code = self._serve(
                Post(self._configuration, place.listeners, own, siblings, place.inbox, self._board, drained)
            )
        except SystemExit as end:  # uvicorn's way to say that it cannot start
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            logger.exception("worker %d has crashed", place.number)
        finally:
            os._exit(code)


@contextmanager
def _wakeup() -> Iterator[socket.socket]:
    """Gives a socket from which the number of each signal that comes can be read."""
    signal.signal(signal.SIGCHLD, lambda *_: None)  # one that has no handler is not told
    inside, outside = socket.socketpair()
    with inside, outside:
        inside.setblocking(False)
        outside.setblocking(False)
        signal.set_wakeup_fd(inside.fileno())
        try:
            yield outside
        finally:
            signal.set_wakeup_fd(-1)
