"""The catalog that is in force now."""

from __future__ import annotations

from collections.abc import Callable

from inference_engine_proxy_server.models.catalog import ModelCatalog

__all__ = ["LiveCatalog"]


class LiveCatalog:
    """Holds the catalog, which a change of the fleet file replaces. Requests in flight keep what they have got.

    Attributes:
        now: the catalog for requests that arrive from now on.
    """

    def __init__(self, catalog: ModelCatalog) -> None:
        self.now = catalog
        self._subscribers: list[Callable[[ModelCatalog], None]] = []

    def subscribe(self, subscriber: Callable[[ModelCatalog], None]) -> None:
        """Call ``subscriber`` with the catalog now, and with each that replaces it."""
        self._subscribers.append(subscriber)
        subscriber(self.now)

    def replace(self, catalog: ModelCatalog) -> None:
        """Use ``catalog`` from now on."""
        self.now = catalog
        for subscriber in self._subscribers:
            subscriber(catalog)
