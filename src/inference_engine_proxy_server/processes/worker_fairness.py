"""Decides which worker fills a slot that became free while requests wait in several workers.

Without it, a worker that holds a slot could refill it for ever while requests in other workers never get one.
"""

from __future__ import annotations

from typing import Protocol

from inference_engine_proxy_server.processes.shared_leases import SharedLeases

__all__ = ["Fairness", "SoleWorker", "WorkerFairness"]


class Fairness(Protocol):
    """One worker's view of all workers."""

    def publish_waiting(self, requests: int) -> None:
        """Publish the number of requests that wait in this worker."""

    def waiting(self, own: int) -> int:
        """How many requests wait in all workers; ``own`` of them wait here."""

    def is_ours(self) -> bool:
        """Whether this worker may fill a free slot."""


class SoleWorker:
    """The fairness of a process without siblings: it may fill every free slot."""

    def publish_waiting(self, requests: int) -> None:
        """Do nothing: there is no other worker."""

    def waiting(self, own: int) -> int:
        """Those that wait here."""
        return own

    def is_ours(self) -> bool:
        """Always true."""
        return True


class WorkerFairness:
    """One worker's view of all workers.

    Args:
        shared_leases: the counts of all workers.
        worker: the number of this worker.
    """

    def __init__(self, shared_leases: SharedLeases, worker: int) -> None:
        self._leases = shared_leases.leases
        self._waiting = shared_leases.waiting
        self._worker = worker

    def publish_waiting(self, requests: int) -> None:
        """Publish the number of requests that wait in this worker."""
        self._waiting[self._worker] = requests

    def waiting(self, own: int) -> int:
        """How many requests wait in all workers; ``own`` of them wait here."""
        return sum(self._waiting) - self._waiting[self._worker] + own

    def is_ours(self) -> bool:
        """Whether this worker may fill a free slot: only if no worker with fewer leases has waiting requests."""
        own = self._leases[self._worker]
        return not any(waiting and leases < own for waiting, leases in zip(self._waiting, self._leases, strict=True))
