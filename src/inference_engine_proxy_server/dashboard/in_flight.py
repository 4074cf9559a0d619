"""How many requests each backend had, minute by minute, in the last hour."""

from __future__ import annotations

from collections import deque

from inference_engine_proxy_server.fleet.fleet import Fleet

__all__ = ["MINUTES", "InFlight"]

MINUTES = 60
"""Minutes that are kept."""

_SAMPLES = 6  # a minute


class InFlight:
    """Samples the requests of all workers on each backend.

    Args:
        fleet: the backends.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._minutes: dict[str, deque[float]] = {}
        self._sums: dict[str, int] = {}
        self._samples = 0

    def sample(self) -> None:
        """Take a sample; called every ten seconds."""
        leases = {backend.url: backend.load.proxy_leases for backend in self._fleet.backends}
        self._sums = {url: self._sums.get(url, 0) + count for url, count in leases.items()}
        self._samples += 1
        if self._samples == _SAMPLES:
            for url, total in self._sums.items():
                self._minutes.setdefault(url, deque(maxlen=MINUTES)).append(round(total / _SAMPLES, 2))
            self._minutes = {url: self._minutes[url] for url in leases}
            self._sums, self._samples = {}, 0

    def means(self) -> dict[str, list[float]]:
        """The means of complete minutes by base URL, the oldest first; fewer than ``MINUTES`` after a start."""
        return {url: list(means) for url, means in self._minutes.items()}
