"""Remembers the backends that have left the fleet while they still have requests."""

from __future__ import annotations

from collections.abc import Sequence

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver

__all__ = ["Departures"]


class Departures(FleetObserver):
    """The backends of ``fleet`` that have left it."""

    def __init__(self, fleet: Fleet) -> None:
        self._present = tuple(fleet.backends)
        self._left: list[Backend] = []
        fleet.subscribe(self)

    @property
    def backends(self) -> Sequence[Backend]:
        """Those that still have requests, of any worker."""
        self._left = [backend for backend in self._left if backend.load.proxy_leases]
        return tuple(self._left)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        staying = {backend.url for backend in backends}
        # In several workers, a backend that is back in the fleet counts the requests of the old object, too.
        gone = [backend for backend in (*self._left, *self._present) if backend.url not in staying]
        self._left = [backend for backend in gone if backend.load.proxy_leases]
        self._present = tuple(backends)
