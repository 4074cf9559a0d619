"""Runs the sources, and applies changes of the configuration together with what they have found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.config.base_urls import server_of
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.discovery.source import Source
from inference_engine_proxy_server.discovery.union import FleetUnion, Member
from inference_engine_proxy_server.fleet.fleet_updater import FleetUpdater, check_engines
from inference_engine_proxy_server.tasks.keep_running import keep_running
from inference_engine_proxy_server.telemetry.journal import Journal

__all__ = ["CONFIGURED", "Discovery"]

CONFIGURED = "configuration"
"""The name of the source that always exists: BACKENDS and the fleet file."""

logger = logging.getLogger(__name__)


class Discovery:
    """All sources of backends.

    Args:
        configuration: whose backends are the fleet now.
        engines: the known engines.
        updater: changes the fleet.
        sources: find backends beside the configuration.
        journal: notes problems of sources.
    """

    def __init__(
        self,
        configuration: Configuration,
        engines: Engines,
        updater: FleetUpdater,
        sources: Sequence[Source],
        journal: Journal,
    ) -> None:
        self._engines = engines
        self._updater = updater
        self._union = FleetUnion(updater.apply_backends, journal)
        self._configured = self._union.member(CONFIGURED, configuration.fleet)
        self._configured.found(configuration.fleet)
        self._members: dict[Source, Member] = {source: self._union.member(source.name) for source in sources}
        self._union.members = (self._configured, *self._members.values())

    @property
    def members(self) -> Sequence[Member]:
        """What each source has found, the configuration first."""
        return self._union.members

    def sources(self) -> dict[str, str]:
        """The name of the source whose settings apply, for each backend by its base URL."""
        found: dict[tuple[str, str, int, str], tuple[str, str]] = {}
        for member in self.members:
            for config in member.backends:
                found.setdefault(server_of(config.url), (config.url, member.name))
        return dict(found.values())

    def source_of(self, url: str) -> str | None:
        """The name of the source whose settings of the backend ``url`` apply; ``None`` if none has it."""
        server = server_of(url)
        return next((source for found, source in self.sources().items() if server_of(found) == server), None)

    def apply(self, configuration: Configuration) -> bool:
        """Apply a changed configuration; what other sources have found stays. Returns whether anything changed.

        Raises:
            UnknownEngineError: nothing has been changed.
        """
        check_engines(configuration.fleet, self._engines)
        has_changed = self._updater.apply_models(configuration.models, configuration.default_model)
        before = self._configured.backends
        self._configured.found(configuration.fleet)
        return before != self._configured.backends or has_changed

    async def run(self) -> None:
        """Run each source, and restart one that crashes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for source, member in self._members.items():
                group.create_task(keep_running(source.name, partial(source.run, member)))

    async def first_reports(self, seconds: float) -> None:
        """Wait until each source has found or reported something, but at most for ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                for member in self._union.members:
                    await member.heard.wait()
        except TimeoutError:
            logger.warning("discovery: not every source has answered yet; backends join when it does")
