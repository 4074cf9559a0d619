"""A reload of the settings by all workers, which the service manager follows."""

from __future__ import annotations

import time
from collections.abc import Iterable

from inference_engine_proxy_server.processes.service_manager import ServiceManager

__all__ = ["Reloads"]

_LONGEST_SECONDS = 10.0  # a worker that has not answered by then stands still


class Reloads:
    """Tells the service manager when a reload begins, and when the last worker has ended its own.

    Args:
        manager: receives both.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self._waited_for: set[int] = set()
        self._ends_at = 0.0
        self._status = ""

    def begin(self, workers: Iterable[int], status: str) -> None:
        """The workers with these numbers begin to reload; ``status`` is reported after the last one."""
        self._waited_for = set(workers)
        self._status = status
        if self._waited_for:
            self._ends_at = time.monotonic() + _LONGEST_SECONDS
            self._manager.reloading("reading the settings again")

    def end(self, worker: int) -> None:
        """One of them has reloaded, or has ended."""
        if worker in self._waited_for:
            self._waited_for.discard(worker)
            if not self._waited_for:
                self._manager.ready(self._status)

    def check(self) -> None:
        """Wait no longer for workers that do not answer."""
        if self._waited_for and time.monotonic() >= self._ends_at:
            self._waited_for.clear()
            self._manager.ready(self._status)
