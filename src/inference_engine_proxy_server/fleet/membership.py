"""Reports to the supervisor which backends join and leave, and drains those that operators drained before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver

__all__ = ["Membership"]


class Membership(FleetObserver):
    """Subscribes to the fleet; it must be the last one that does.

    Args:
        fleet: the fleet.
        drained_urls: base URLs of backends that operators drained before this process started. Those that are found
            later are drained when they join.
        tell: gets the base URLs of backends that have joined, and of those that have left.
    """

    def __init__(
        self, fleet: Fleet, drained_urls: Collection[str], tell: Callable[[Collection[str], Collection[str]], None]
    ) -> None:
        self._fleet = fleet
        self._drained_urls = set(drained_urls)
        self._tell = tell
        self._urls: set[str] = set()
        fleet.subscribe(self)
        self.on_replaced(fleet.backends)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        before, self._urls = self._urls, {backend.url for backend in backends}
        self._tell(self._urls - before, before - self._urls)
        for backend in backends:
            if backend.url in self._drained_urls:
                self._drained_urls.discard(backend.url)
                self._fleet.set_draining(backend)
