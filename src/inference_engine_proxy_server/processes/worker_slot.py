"""The supervisor's record of each worker."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from inference_engine_proxy_server.processes.channel import Channel

__all__ = ["WorkerProcess", "WorkerSlot"]


@dataclass(eq=False, slots=True)
class WorkerProcess:
    """A living worker process.

    Attributes:
        serves: it accepts connections.
        alive_at: when it last showed a sign of life; ``None`` before the first one.
        aborted_at: when the supervisor sent it SIGABRT, because it showed none.
    """

    pid: int
    channel: Channel
    serves: bool = False
    alive_at: float | None = None
    aborted_at: float | None = None


@dataclass(eq=False, slots=True)
class WorkerSlot:
    """One numbered worker, across the restarts of its process.

    Attributes:
        inbox: receives queries of siblings.
        listeners: the sockets of each port from which it accepts connections; empty during a pause before a restart,
            so that no connection waits there.
        process: its living process, if any.
        starts_at: when the next process is due to start; ``None`` if none is.
        started_at: when the last process was started.
        early_ends: number of consecutive processes that ended soon after their start.
    """

    number: int
    inbox: socket.socket
    listeners: Sequence[Sequence[socket.socket]] = ()
    process: WorkerProcess | None = None
    starts_at: float | None = 0.0
    started_at: float = 0.0
    early_ends: int = 0

    @property
    def serves(self) -> bool:
        """Whether the worker accepts connections now."""
        return self.process is not None and self.process.serves
