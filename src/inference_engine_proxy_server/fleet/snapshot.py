"""A consistent view of the whole fleet, for endpoints and metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.difference import Difference
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.fleet.model_load import ModelLoad
from inference_engine_proxy_server.fleet.serving import Serving

__all__ = ["BackendSnapshot", "FleetSnapshot", "ModelSnapshot"]


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model of a backend that loads and unloads its models.

    Attributes:
        status: as the backend last reported it, such as ``loaded``.
        in_memory: the backend has loaded it, or is loading it.
        requests: all known requests for it, including foreign ones.
        waiting: requests that wait for it in all workers.
        limit: the requests at which it is full; infinite when unknown.
    """

    status: str
    in_memory: bool
    requests: float
    waiting: int
    limit: float

    @classmethod
    def of(cls, load: ModelLoad) -> ModelSnapshot:
        """The current state of the model of ``load``."""
        return cls(load.status, load.in_memory, load.total, load.waiting, load.limit)


@dataclass(frozen=True, slots=True)
class BackendSnapshot:
    """One backend at one point in time. It has many attributes, because each is shown under its own name.

    Attributes:
        name: from the configuration.
        url: base URL.
        engine: name of its engine; ``None`` before that is known.
        state: health.
        reason: why it is not up; empty when it is.
        since: when it got into this state, in seconds since the epoch.
        is_live: it works, even if it is busy or suspended.
        takes_requests: it is in rotation.
        is_draining: an operator took it out of rotation.
        is_last_choice: it gets a request only when no other backend is free.
        leases: requests of this worker.
        requests_in_flight: requests of all workers.
        load: all its known requests, including foreign ones.
        limit: the load at which it is full; infinite when unknown.
        slots: how many requests it works on at once; infinite when unknown.
        is_silent: it did not answer the latest poll.
        weight, tier: as configured.
        share: the fraction of its usual share of requests that it gets now, up to 1.
        serving: its models.
        models: their states by id, if it loads and unloads them; ``None`` for all other backends.
        most_models: models that it holds in memory at most; infinite if there is no limit, or none is known.
        model_loads: requests of this worker that made it load a model.
        models_known: its models are from a report or from the configuration.
        reported: its latest report.
        reported_at: when it reported, in seconds since the epoch; 0 before the first report.
    """

    name: str
    url: str
    engine: str | None
    state: Health
    reason: str
    since: float
    is_live: bool
    takes_requests: bool
    is_draining: bool
    is_last_choice: bool
    leases: int
    requests_in_flight: int
    load: float
    limit: float
    slots: float
    is_silent: bool
    weight: float
    tier: int
    share: float
    serving: Serving
    models: Mapping[str, ModelSnapshot] | None
    most_models: float
    model_loads: int
    models_known: bool
    reported: BackendState
    reported_at: float

    @property
    def shown_state(self) -> str:
        """The state in one word for people, who also want to know what an operator did and if polls are answered."""
        if self.is_draining:
            return "draining"
        if self.state is Health.BUSY and self.is_silent:
            return "frozen"
        return "ready" if self.state is Health.UP else self.state.value

    @classmethod
    def of(cls, backend: Backend, now: float) -> BackendSnapshot:
        """The current state of ``backend``; ``now`` is a reading of the fleet's clock."""
        health, load, models = backend.health, backend.load, backend.loaded_models
        return cls(
            name=backend.config.name,
            url=backend.url,
            engine=backend.engine,
            state=health.state,
            reason=health.reason,
            since=time.time() - (now - health.since),
            is_live=backend.is_live,
            takes_requests=backend.takes_requests,
            is_draining=backend.is_draining,
            is_last_choice=backend.is_last_choice,
            leases=load.leases,
            requests_in_flight=load.proxy_leases,
            load=load.total,
            limit=load.limit,
            slots=load.slots,
            is_silent=health.is_silent,
            weight=backend.config.weight,
            tier=backend.config.tier,
            share=health.share(now),
            serving=backend.serving,
            models=None if models is None else {one.model: ModelSnapshot.of(one) for one in models.all},
            most_models=math.inf if models is None else models.places,
            model_loads=0 if models is None else models.loads,
            models_known=backend.models_known,
            reported=health.reported,
            reported_at=backend.reported_at,
        )


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The fleet at one point in time.

    Attributes:
        backends: in the order of the configuration.
        differences: between the replicas of each model.
    """

    backends: tuple[BackendSnapshot, ...]
    differences: tuple[Difference, ...] = ()

    @classmethod
    def of(cls, backends: Iterable[Backend], now: float, differences: tuple[Difference, ...] = ()) -> FleetSnapshot:
        """The current state of ``backends``; ``now`` is a reading of the fleet's clock."""
        return cls(tuple(BackendSnapshot.of(backend, now) for backend in backends), differences)

    @property
    def live(self) -> tuple[BackendSnapshot, ...]:
        """The backends that work."""
        return tuple(backend for backend in self.backends if backend.is_live)
