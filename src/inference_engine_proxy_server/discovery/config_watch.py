"""Applies a changed fleet without a restart: when a file of the configuration changes, and on a reload."""

from __future__ import annotations

import logging
from collections.abc import Callable

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.file_watch import FileWatch
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError, settings_files
from inference_engine_proxy_server.discovery.discovery import Discovery
from inference_engine_proxy_server.fleet.fleet_updater import UnknownEngineError
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["ConfigWatch"]

_APPLIED_AT_ONCE = frozenset({"backends", "backend_api_key", "default_model"})

logger = logging.getLogger(__name__)


class ConfigWatch:
    """Reads the configuration again and applies its fleet. A configuration with an error is rejected as a whole.

    Args:
        configuration: the current configuration.
        load: reads it again. Raises ``SettingsError``.
        discovery: applies its fleet.
        metrics: counts reloads.
        journal: notes reloads.
        is_worker: the process started with the configuration of its supervisor.

    Attributes:
        in_force: the configuration that is in force: changes that need a restart are left out.
    """

    def __init__(
        self,
        configuration: Configuration,
        load: Callable[[], Configuration],
        discovery: Discovery,
        metrics: RequestMetrics,
        journal: Journal,
        *,
        is_worker: bool = False,
    ) -> None:
        self.in_force = configuration
        self._settings = configuration.settings
        self._load = load
        self._discovery = discovery
        self._metrics = metrics
        self._journal = journal
        # A new worker has the configuration of its supervisor, which leaves out files that are being written.
        self._watch = FileWatch(settings_files(self._settings), distrusts_fresh=is_worker)
        self._expects_news = not self._watch.distrusts

    async def run(self) -> None:
        """Reload after each change of a file, until cancelled."""
        await self._watch.run(self.reload_after_change)

    def reload_after_change(self) -> None:
        """Read the configuration again, because a file has changed, or was too new when this worker started."""
        self.reload(expects_news=self._expects_news)

    def reload(self, *, expects_news: bool = True) -> None:
        """Read the configuration again now, and log it, unless nothing has changed and nobody expects news."""
        self._watch.changed()  # changes up to now are read below
        try:
            configuration = self._load()
            has_changed = self._discovery.apply(configuration)
        except (SettingsError, UnknownEngineError) as error:
            self._metrics.count_reload(succeeded=False)
            for line in str(error).splitlines():
                logger.error("settings: %s; the fleet is unchanged", line)
            problems = "; ".join(str(error).splitlines())
            text = f"The changed settings cannot be used, and the fleet is unchanged: {problems}."
            self._journal.note("reload", text, severity="error", like="error")
            return
        self._metrics.count_reload(succeeded=True)
        self._expects_news = True
        if not has_changed and expects_news:
            logger.info("settings: reloaded, the fleet is unchanged")
        if has_changed or expects_news:
            result = "and what has changed in the fleet is in force" if has_changed else "and the fleet is unchanged"
            self._journal.note("reload", f"The settings were read again, {result}.")
        self._warn_of_ignored_changes(configuration.settings)
        self._settings = configuration.settings
        self.in_force = self.in_force.with_fleet_of(configuration)
        self._watch.files = settings_files(self._settings)

    def _warn_of_ignored_changes(self, after: Settings) -> None:
        before = self._settings
        for field in Settings.model_fields:
            if field not in _APPLIED_AT_ONCE and getattr(before, field) != getattr(after, field):
                logger.warning("settings: %s has changed; restart to apply the change", field.upper())
