"""Applies a changed configuration of the fleet while the proxy runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.values import closest_name
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet

__all__ = ["FleetUpdater", "UnknownEngineError", "check_engines"]

logger = logging.getLogger(__name__)


class UnknownEngineError(Exception):
    """The configuration of a backend names an unknown engine; the text lists the known ones."""


def check_engines(fleet: Iterable[BackendConfig], engines: Engines) -> None:
    """Raise :class:`UnknownEngineError` if ``fleet`` names an engine that is not in ``engines``."""
    for config in fleet:
        if config.engine is not None and config.engine not in engines.by_provider:
            known = sorted(engines.by_provider)
            close = closest_name(config.engine, known, min_similarity=0.6)
            meant = f"; did you mean {close}?" if close else ""
            place = f"{config.place}.engine" if config.place else f"backend {config.name}: engine"
            raise UnknownEngineError(f"{place} is {config.engine!r}: use one of {', '.join(known)}{meant}")


class FleetUpdater:
    """Applies configurations.

    Args:
        fleet: the fleet.
        make_backend: makes a backend that joins.
        on_reconfigured: called with a backend whose engine must be identified again.
        on_models_changed: called with new settings of models, and the model of requests that name none.
        models: the current settings of models.
        default_model: the current model of requests that name none.
    """

    def __init__(
        self,
        fleet: Fleet,
        make_backend: Callable[[BackendConfig], Backend],
        on_reconfigured: Callable[[Backend], None],
        on_models_changed: Callable[[Mapping[str, ModelConfig], str | None], None],
        models: Mapping[str, ModelConfig],
        default_model: str | None = None,
    ) -> None:
        self._fleet = fleet
        self._make_backend = make_backend
        self._on_reconfigured = on_reconfigured
        self._on_models_changed = on_models_changed
        self._models = models, default_model

    def apply_models(self, models: Mapping[str, ModelConfig], default_model: str | None = None) -> bool:
        """Apply settings of models. Returns whether they have changed."""
        if (models, default_model) == self._models:
            return False
        self._models = models, default_model
        self._on_models_changed(models, default_model)
        logger.info("model settings in the fleet file now apply to: %s", ", ".join(models) or "no models")
        return True

    def apply_backends(self, fleet: Sequence[BackendConfig]) -> bool:
        """Make ``fleet``, whose engines are known, the fleet. Returns whether that changes anything.

        Backends that stay keep their health and their requests.
        """
        hosts = {config.url: config.host_name for config in fleet}
        # The connections of a backend keep the name of its server, so one with another name is another backend.
        known = {one.url: one for one in self._fleet.backends if hosts.get(one.url) == one.config.host_name}
        changed = [config for config in fleet if config.url not in known or known[config.url].config != config]
        urls = [config.url for config in fleet]
        if not changed and urls == [backend.url for backend in self._fleet.backends]:
            return False
        for config in changed:
            if config.url in known:
                self._reconfigure(known[config.url], config)
        self._fleet.replace(known.get(config.url) or self._make_backend(config) for config in fleet)
        logger.info("the fleet is now: %s", ", ".join(config.name for config in fleet))
        return True

    def _reconfigure(self, backend: Backend, config: BackendConfig) -> None:
        before = backend.config
        backend.configure(config)
        if _polled(before) != _polled(config):
            self._on_reconfigured(backend)


def _polled(config: BackendConfig) -> BackendConfig:
    """``config`` without what only requests need, so that a backend need not be polled again when it changes."""
    return replace(config, name="", weight=1, tier=1, takes_any_model=False, stream_usage=None)
