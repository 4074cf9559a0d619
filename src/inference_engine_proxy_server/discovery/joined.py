"""Sources of the backends that joined while the proxy runs: those of operators, and those with a lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from inference_engine_proxy_server.config.added_backends import DescriptionError
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.discovery.source import SourceReport
from inference_engine_proxy_server.processes.roster import Entry, Roster

__all__ = ["ADDED", "ANNOUNCED", "AddedBackends", "AnnouncedBackends"]

ADDED, ANNOUNCED = "admin API", "announcements"
"""Names of the sources."""

_LEAST_DELAY_SECONDS = 1.0  # above which this process did not run in time, and could not receive renewals either

logger = logging.getLogger(__name__)

ConfigOf = Callable[[Entry], BackendConfig]
"""The configuration from an entry. Raises ``DescriptionError``."""


class AddedBackends:
    """The backends that operators have added.

    Args:
        roster: has them.
        config_of: configures them.
    """

    name = ADDED

    def __init__(self, roster: Roster, config_of: ConfigOf) -> None:
        self._roster = roster
        self._configs = _Configs(config_of)
        self._changed = asyncio.Event()
        roster.subscribe(self._changed.set)

    async def run(self, report: SourceReport) -> None:
        """See :class:`~.source.Source`."""
        while True:
            self._changed.clear()
            report.found(self._configs.of(self._roster.added.values()))
            await self._changed.wait()


class AnnouncedBackends:
    """The backends that have a lease. Those whose leases end leave.

    Args:
        roster: has them.
        config_of: configures them.
        clock: that of the leases.
    """

    name = ANNOUNCED

    def __init__(self, roster: Roster, config_of: ConfigOf, clock: Callable[[], float]) -> None:
        self._roster = roster
        self._configs = _Configs(config_of)
        self._clock = clock
        self._changed = asyncio.Event()
        roster.subscribe(self._changed.set)

    async def run(self, report: SourceReport) -> None:
        """See :class:`~.source.Source`."""
        while True:
            self._changed.clear()
            report.found(self._configs.of([one.entry for one in self._roster.announced.values()]))
            await self._wait()

    async def _wait(self) -> None:
        """Wait for a command, or for the end of a lease."""
        next_end = self._roster.next_end()
        try:
            async with asyncio.timeout(None if next_end is None else max(0.0, next_end - self._clock())):
                await self._changed.wait()
        except TimeoutError:
            self.end_leases()

    def end_leases(self) -> None:
        """Remove the backends whose leases have ended. If this process stood still meanwhile, all get that time."""
        now, next_end = self._clock(), self._roster.next_end()
        if next_end is not None and now - next_end > _LEAST_DELAY_SECONDS:
            logger.warning(
                "announcements: this process stood still, so all leases are prolonged by %.0f s", now - next_end
            )
            self._roster.prolong_leases(now - next_end + _LEAST_DELAY_SECONDS)
        for entry in self._roster.end_leases(now):
            logger.warning("announcements: the lease of %s has ended: it leaves the fleet", entry["url"])


class _Configs:
    """Configurations from entries; those of unchanged entries are kept, because leases are renewed all the time."""

    def __init__(self, config_of: ConfigOf) -> None:
        self._config_of = config_of
        self._known: dict[str, tuple[Entry, BackendConfig]] = {}

    def of(self, entries: Iterable[Entry]) -> Sequence[BackendConfig]:
        """The configurations from ``entries``."""
        found: dict[str, tuple[Entry, BackendConfig]] = {}
        for entry in entries:
            known = self._known.get(entry["url"])
            if known is not None and known[0] == entry:
                found[entry["url"]] = known
                continue
            try:
                found[entry["url"]] = entry, self._config_of(entry)
            except DescriptionError as error:  # only the variable that it names can have gone
                logger.error("backend %s cannot be used: %s", entry["url"], error)
        self._known = found
        return [config for _, config in found.values()]
