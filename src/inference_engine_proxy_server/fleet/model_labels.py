"""The names of models that may become labels of metrics. Clients can make up names, but none of them gets here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.models.catalog import ModelCatalog
from inference_engine_proxy_server.models.live_catalog import LiveCatalog

__all__ = ["ModelLabels"]


class ModelLabels(FleetObserver):
    """Labels for the models of requests.

    Args:
        fleet: the backends.
        catalog: the operator's names.
        is_served: whether a backend serves a model of a name, or has served it.
    """

    def __init__(self, fleet: Fleet, catalog: LiveCatalog, is_served: Callable[[str], bool]) -> None:
        self._is_served = is_served
        self._named: Sequence[str] = ()
        self._backends: dict[str, Backend] = {}
        self.on_replaced(fleet.backends)
        fleet.subscribe(self)
        catalog.subscribe(self._use)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        self._backends = {backend.url: backend for backend in backends}

    def of(self, backend: str | None, model: str | None) -> str:
        """The label for the model of a request.

        Args:
            backend: base URL of the backend that it used; ``None`` if it used none.
            model: that the request names, as engines know it; ``None`` if it names none.

        Returns:
            A name that a backend lists, or the fleet file has; the empty text if the model is not known.
        """
        used = None if backend is None else self._backends.get(backend)
        if used is not None:
            return used.serving.listed_name(model) or ""
        return model if model is not None and (self._is_served(model) or model in self._named) else ""

    def all(self) -> Iterable[str]:
        """Every model that a backend lists, also one that is down, or that the fleet file names."""
        listed = (entry["id"] for backend in self._backends.values() for entry in backend.serving.models)
        return dict.fromkeys([*listed, *self._named])

    def _use(self, catalog: ModelCatalog) -> None:
        self._named = catalog.models
