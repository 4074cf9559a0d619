"""Brings the pool in line with what is said of the fleet: at the start, and whenever that changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.dispatch.backend_pool import BackendPool
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.cache_refresher import CacheRefresher
from inference_engine_proxy_server.routing.prompt_router import PromptRouter

__all__ = ["FleetUpdater", "UnknownEngineError", "check_engines"]

logger = logging.getLogger(__name__)


class UnknownEngineError(Exception):
    """A backend is said to be of an engine that nobody knows; the text names those that are known."""


def check_engines(fleet: Iterable[BackendConfig], engines: Engines) -> None:
    """Raises :class:`UnknownEngineError` if ``fleet`` states an engine that is not among ``engines``."""
    for config in fleet:
        if config.engine is not None and config.engine not in engines.by_provider:
            known = ", ".join(sorted(engines.by_provider))
            raise UnknownEngineError(f"backend {config.name}: engine is {config.engine!r}: one of {known} is needed")


class FleetUpdater:
    """Applies changes.

    Args:
        pool: has the fleet.
        refresher: asks its backends.
        engines: those that may be stated.
        make_backend: one that is new.
        make_chooser: chooses by what is said of models, going on with what the present one knows; ``None``: no policy
            looks at prompts.
        models: what is said of them at the beginning.
    """

    def __init__(
        self,
        pool: BackendPool,
        refresher: CacheRefresher,
        engines: Engines,
        make_backend: Callable[[BackendConfig], Backend],
        make_chooser: Callable[[Mapping[str, ModelConfig], PromptRouter | None], PromptRouter | None],
        models: Mapping[str, ModelConfig],
    ) -> None:
        self._pool = pool
        self._refresher = refresher
        self._engines = engines
        self._make_backend = make_backend
        self._make_chooser = make_chooser
        self._models = models

    def apply(self, fleet: Sequence[BackendConfig], models: Mapping[str, ModelConfig]) -> bool:
        """Let ``fleet`` be the fleet, and ``models`` hold; whether that changed anything.

        Backends that stay keep all that they have.

        Raises:
            UnknownEngineError: nothing has been changed.
        """
        check_engines(fleet, self._engines)
        models_have_changed = self._apply_models(models)
        return self._apply_fleet(fleet) or models_have_changed

    def _apply_models(self, models: Mapping[str, ModelConfig]) -> bool:
        if models == self._models:
            return False
        self._models = models
        placement = self._pool.placement
        placement.choose_by(self._make_chooser(models, placement.chooser))
        logger.info("settings of their own have now: %s", ", ".join(models) or "no models")
        return True

    def _apply_fleet(self, fleet: Sequence[BackendConfig]) -> bool:
        known = {backend.url: backend for backend in self._pool.backends}
        changed = [config for config in fleet if config.url not in known or known[config.url].config != config]
        urls = [config.url for config in fleet]
        if not changed and urls == list(known):
            return False
        for config in changed:
            if config.url in known:
                self._change(known[config.url], config)
        self._pool.replace(known.get(config.url) or self._make_backend(config) for config in fleet)
        logger.info("the fleet is now: %s", ", ".join(config.name for config in fleet))
        return True

    def _change(self, backend: Backend, config: BackendConfig) -> None:
        before = backend.config
        backend.configure(config)
        if replace(before, name="", weight=1) != replace(config, name="", weight=1):
            self._refresher.forget_engine(backend)
