"""A backend on which other workers have requests, too."""

from __future__ import annotations

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.wire.backend_connections import BackendConnections

__all__ = ["SharedBackend"]


class SharedBackend(Backend):
    """A backend whose load has the requests of all workers.

    Args:
        config, connections, health: as for :class:`Backend`.
        board: has the requests of all.
        worker: this process's number.
    """

    __slots__ = ("_leases", "_row", "_totals", "_worker")

    def __init__(
        self,
        config: BackendConfig,
        connections: BackendConnections,
        health: HealthTracker,
        board: SharedLeases,
        worker: int,
    ) -> None:
        self._row = board.row(config.url)
        self._totals = board.leases
        self._worker = worker
        self._leases = 0
        super().__init__(config, connections, health)

    @property
    def leases(self) -> int:
        """Requests of this worker that it has now."""
        return self._leases

    @leases.setter
    def leases(self, count: int) -> None:
        # Not just the count: a backend that left the fleet and came back is another object with requests of its own.
        change = count - self._leases
        self._row[self._worker] += change
        self._totals[self._worker] += change
        self._leases = count

    @property
    def all_leases(self) -> int:
        """Requests of all workers that it has now."""
        return sum(self._row)

    @property
    def load(self) -> float:
        """Those, and what others have sent it as far as we know."""
        return self._foreign + sum(self._row)

    @load.setter
    def load(self, load: float) -> None:
        """Nothing to note: the leases, which it follows from, stand on the board."""
