"""Runs the sources, and applies changes of the configuration together with what they have found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.config.base_urls import server_of
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.discovery.source import Source
from inference_engine_proxy_server.discovery.union import FleetUnion, Member
from inference_engine_proxy_server.fleet.fleet_updater import FleetUpdater, check_engines
from inference_engine_proxy_server.tasks.keep_running import keep_running
from inference_engine_proxy_server.telemetry.journal import Journal

__all__ = ["CONFIGURED", "Discovery", "LookupSource"]

CONFIGURED = "configuration"
"""The name of the source that always exists: BACKENDS and the fleet file."""

logger = logging.getLogger(__name__)


class LookupSource(Source, Protocol):
    """A DNS name as a source."""

    def configure(self, entry: BackendConfig) -> None:
        """Apply other options to all backends of the name."""


class Discovery:
    """All sources of backends.

    Args:
        configuration: whose backends are the fleet now.
        engines: the known engines.
        updater: changes the fleet.
        make_lookup: makes the source for a DNS name of the configuration.
        others: further sources.
        journal: notes problems of sources.
    """

    def __init__(
        self,
        configuration: Configuration,
        engines: Engines,
        updater: FleetUpdater,
        make_lookup: Callable[[BackendConfig], LookupSource],
        others: Iterable[Source],
        journal: Journal,
    ) -> None:
        self._engines = engines
        self._updater = updater
        self._make_lookup = make_lookup
        self._union = FleetUnion(updater.apply_backends, journal)
        self._configured = self._union.member(CONFIGURED, configuration.fleet)
        self._configured.found(configuration.fleet)
        self._lookups: dict[str, tuple[LookupSource, Member]] = {}  # by URL
        self._others: list[tuple[Source, Member]] = [(one, self._union.member(one.name)) for one in others]
        self._changed = asyncio.Event()
        self._adopt_lookups(configuration.lookups)

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
        check_engines((*configuration.fleet, *configuration.lookups), self._engines)
        has_changed = self._updater.apply_models(configuration.models, configuration.default_model)
        before = self._configured.backends, self._entries
        self._configured.found(configuration.fleet)
        self._adopt_lookups(configuration.lookups)
        return before != (self._configured.backends, self._entries) or has_changed

    async def run(self) -> None:
        """Run each source, and restart one that crashes, until cancelled."""
        running: dict[Source, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                sources = dict([*self._lookups.values(), *self._others])
                for gone in running.keys() - sources.keys():
                    running.pop(gone).cancel()
                for source in sources.keys() - running.keys():
                    running[source] = group.create_task(keep_running(source.name, partial(source.run, sources[source])))
                self._changed.clear()
                await self._changed.wait()

    async def first_reports(self, seconds: float) -> None:
        """Wait until each source has found or reported something, but at most for ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                for member in self._union.members:
                    await member.heard.wait()
        except TimeoutError:
            logger.warning("discovery: not every source has answered yet; backends join when it does")

    def _adopt_lookups(self, entries: Sequence[BackendConfig]) -> None:
        """Make ``entries`` the DNS names that are looked up; those that stay keep what they have found."""
        before, self._lookups = self._lookups, {}
        for entry in entries:
            known = before.get(entry.url)
            if known is None:
                source = self._make_lookup(entry)
                known = source, self._union.member(source.name)
            self._lookups[entry.url] = known
        self._entries = tuple(entries)
        found = [member for _, member in (*self._lookups.values(), *self._others)]
        self._union.arrange([self._configured, *found])
        for entry in entries:
            self._lookups[entry.url][0].configure(entry)
        self._changed.set()
