"""Whose turn it is when a place gets free, and requests wait for it in several workers.

A worker that has a place could fill it again for ever, while requests that came to its siblings wait in vain.
"""

from __future__ import annotations

from inference_engine_proxy_server.processes.shared_leases import SharedLeases

__all__ = ["WorkerFairness"]


class WorkerFairness:
    """One worker's view.

    Args:
        board: where workers tell each other what they have.
        worker: this one's number.
    """

    def __init__(self, board: SharedLeases, worker: int) -> None:
        self._leases = board.leases
        self._waiting = board.waiting
        self._worker = worker

    def note_waiting(self, requests: int) -> None:
        """So many wait here."""
        self._waiting[self._worker] = requests

    def is_ours(self) -> bool:
        """Whether who waits here may have a free place: not while somebody waits where fewer places are taken."""
        own = self._leases[self._worker]
        return not any(waiting and leases < own for waiting, leases in zip(self._waiting, self._leases, strict=True))
