"""The supervisor's record of each worker."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from inference_engine_proxy_server.processes.channel import Channel

__all__ = ["WorkerProcess", "WorkerSlot"]


@dataclass(eq=False, slots=True)
class WorkerProcess:
    """A living worker process; ``serves`` is set once it accepts connections."""

    pid: int
    channel: Channel
    serves: bool = False


@dataclass(eq=False, slots=True)
class WorkerSlot:
    """One numbered worker, across the restarts of its process.

    Attributes:
        inbox: receives queries of siblings.
        listeners: its listening sockets; empty during a pause before a restart, so that no connection waits there.
        process: its living process, if any.
        starts_at: when the next process is due to start; ``None`` if none is.
        started_at: when the last process was started.
        early_ends: number of consecutive processes that ended soon after their start.
    """

    number: int
    inbox: socket.socket
    listeners: tuple[socket.socket, ...] = ()
    process: WorkerProcess | None = None
    starts_at: float | None = 0.0
    started_at: float = 0.0
    early_ends: int = 0

    @property
    def serves(self) -> bool:
        """Whether the worker accepts connections now."""
        return self.process is not None and self.process.serves

    def close_listeners(self) -> None:
        """Close the listening sockets, so that no connection waits for this worker."""
        for listener in self.listeners:
            listener.close()
        self.listeners = ()
