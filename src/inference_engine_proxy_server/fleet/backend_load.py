"""The load of one backend: its requests by origin, and how many it can take."""

from __future__ import annotations

import math

from inference_engine_proxy_server.processes.shared_leases import SharedLeases

__all__ = ["BackendLoad", "SharedLoad"]


class BackendLoad:
    """The requests of one backend, in a proxy of one process.

    Attributes:
        leases: requests of this worker.
        foreign: requests that did not come through this proxy, derived from the backend's latest report.
        others: all requests except those of this worker: foreign ones, and those of other workers when last counted.
        slots: how many requests the backend works on at once; infinite when it does not report that.
        limit: the total at which the backend is full.
    """

    __slots__ = ("foreign", "leases", "limit", "others", "slots")

    leases: int

    def __init__(self) -> None:
        self.leases = 0
        self.foreign = 0.0
        self.others = 0.0
        self.slots = math.inf
        self.limit = math.inf

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"<{kind} leases={self.leases} foreign={self.foreign:g} total={self.total:g} limit={self.limit:g}>"

    @property
    def total(self) -> float:
        """All requests of the backend."""
        return self.leases + self.others

    @property
    def proxy_leases(self) -> int:
        """The requests of all workers of this proxy."""
        return self.leases

    def set_foreign(self, requests: float) -> None:
        """The backend has ``requests`` that did not come through this proxy."""
        self.foreign = requests
        self.count_others()

    def set_slots(self, slots: int | None, allowance: int) -> None:
        """The backend works on ``slots`` requests at once (``None``: unknown), and may queue ``allowance`` more."""
        self.slots = math.inf if slots is None else slots
        self.limit = self.slots + allowance

    def count_others(self) -> None:
        """Update ``others``."""
        self.others = self.foreign


class SharedLoad(BackendLoad):
    """The requests of one backend, in a proxy of several workers.

    Args:
        shared_leases: the lease counts of all workers.
        worker: the number of this worker.
        url: base URL of the backend.
    """

    __slots__ = ("_leases", "_row", "_totals", "_worker")

    def __init__(self, shared_leases: SharedLeases, worker: int, url: str) -> None:
        self._row = shared_leases.row(url)
        self._totals = shared_leases.leases
        self._worker = worker
        self._leases = 0
        super().__init__()

    @property
    def leases(self) -> int:
        """Requests of this worker."""
        return self._leases

    @leases.setter
    def leases(self, count: int) -> None:
        # Shared counts change by the difference: a backend that left the fleet and came back is a new object, and the
        # requests of the old one are still counted in the same row.
        change = count - self._leases
        self._row[self._worker] += change
        self._totals[self._worker] += change
        self._leases = count

    @property
    def total(self) -> float:
        """All requests of the backend, as of now."""
        return self.foreign + sum(self._row)

    @property
    def proxy_leases(self) -> int:
        """The requests of all workers of this proxy, as of now."""
        return sum(self._row)

    def count_others(self) -> None:
        """Update ``others``: other workers change their counts without notice."""
        self.others = self.foreign + sum(self._row) - self._leases
