"""Reports models of backends that cannot be reached, because the fleet file gives their names another meaning."""

from __future__ import annotations

import logging

from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.models.catalog import ModelCatalog
from inference_engine_proxy_server.models.live_catalog import LiveCatalog

__all__ = ["HiddenModels"]

logger = logging.getLogger(__name__)


class HiddenModels(FleetObserver):
    """Logs a warning for each such name, once while it lasts.

    Args:
        fleet: the backends.
        catalog: the names in the fleet file.
    """

    def __init__(self, fleet: Fleet, catalog: LiveCatalog) -> None:
        self._fleet = fleet
        self._catalog = catalog
        self._reported: set[str] = set()
        fleet.subscribe(self)
        catalog.subscribe(self._check)

    def on_serving_changed(self) -> None:
        """See :class:`FleetObserver`."""
        self._check(self._catalog.now)

    def _check(self, catalog: ModelCatalog) -> None:
        found: set[str] = set()
        for backend in () if catalog.is_empty else self._fleet.backends:
            for name in filter(catalog.hides, backend.serving.model_ids):
                found.add(name)
                if name not in self._reported:
                    logger.warning(
                        "%s serves a model %r, which gets no requests: in the fleet file, the name means another model",
                        backend.config.name,
                        name,
                    )
        self._reported = found
