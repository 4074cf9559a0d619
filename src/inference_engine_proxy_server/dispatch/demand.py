"""The demand for each model now: what an autoscaler needs to know."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from inference_engine_proxy_server.backends.base import ModelStatus
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.model_labels import ModelLabels
from inference_engine_proxy_server.requests.destinations import IN_A_SLOT, Destination
from inference_engine_proxy_server.telemetry.exposition import Labels, family
from inference_engine_proxy_server.wire.load import Load

__all__ = ["Demand"]

_STATES = ("running", "waiting", "loading")
_COUNTED = IN_A_SLOT | {Destination.WEBSOCKET}
_CONNECTIONS = 1024  # looked at between two pieces of text


class Demand:
    """Counts requests in flight by model and state. It looks at them when it is asked, so they cost nothing more.

    Args:
        load: the connections of clients.
        fleet: the backends.
        names: labels of models.
        labels: formats labels.
    """

    def __init__(self, load: Load, fleet: Fleet, names: ModelLabels, labels: Labels) -> None:
        self._load = load
        self._fleet = fleet
        self._names = names
        self._labels = labels

    def families(self) -> Iterator[str]:
        """The family, see :data:`~.exposition.Families`."""
        counts = Counter({(model, state): 0 for model in self._names.all() for state in _STATES})
        backends = {backend.url: backend for backend in self._fleet.backends}
        for number, connection in enumerate(list(self._load.connections)):
            if not number % _CONNECTIONS:
                yield ""
            request = connection.exchange
            if isinstance(request, ProxiedRequest) and request.head.destination in _COUNTED:
                counts[self._names.of(request.backend, request.model), _state_of(request, backends)] += 1
        yield from family(
            "inference_proxy_model_demand",
            "gauge",
            "Requests for the model now: running on a backend, waiting for one, or on one that loads the model.",
            ((self._labels.of(model=model, state=state), count) for (model, state), count in counts.items()),
        )


def _state_of(request: ProxiedRequest, backends: Mapping[str, Backend]) -> str:
    if request.is_waiting:
        return "waiting"
    backend = backends.get(request.backend or "")
    must_load = backend is not None and request.awaits_reply and _must_load(backend, request.model)
    return "loading" if must_load else "running"


def _must_load(backend: Backend, model: str | None) -> bool:
    """Whether the backend cannot answer a request for ``model`` before it has loaded or woken it."""
    if backend.loaded_models is None:
        return backend.serving.status_of(model) is not ModelStatus.AWAKE
    load = None if model is None else backend.loaded_models.find(model)
    return load is not None and load.ready_since == math.inf
