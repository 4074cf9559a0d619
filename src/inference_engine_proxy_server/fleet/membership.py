"""Reports to the supervisor which backends join and leave, and carries out drains, also of backends that join later."""

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

    def obey(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Drain or undrain the backend ``url`` by an operator's command, and move its requests if it says so.

        A backend that is not in the fleet yet is drained when it joins.
        """
        backend = next((one for one in self._fleet.backends if one.url == url), None)
        if backend is None:
            (self._drained_urls.add if is_draining else self._drained_urls.discard)(url)
            return
        self._fleet.set_draining(backend, is_draining=is_draining)
        if moves:
            self._fleet.move_requests(backend)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        before, self._urls = self._urls, {backend.url for backend in backends}
        self._tell(self._urls - before, before - self._urls)
        for backend in backends:
            if backend.url in self._drained_urls:
                self._drained_urls.discard(backend.url)
                self._fleet.set_draining(backend)
