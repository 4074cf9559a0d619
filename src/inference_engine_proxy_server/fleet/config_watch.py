"""Takes up a changed fleet without a restart: on SIGHUP, or when a file that it comes from has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

from inference_engine_proxy_server.config.file_stamp import FileStamp, stamps_of_settings
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.fleet.fleet_updater import FleetUpdater, UnknownEngineError
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["ConfigWatch"]

_LOOK_SECONDS = 1.0  # between two looks whether a file has changed

logger = logging.getLogger(__name__)


class ConfigWatch:
    """Reads the settings again, and lets their fleet be the fleet; what cannot be used is refused as a whole.

    Args:
        settings: those that are in use.
        load: reads them again. Raises ``SettingsError``.
        keeper: takes the fleet over.
        metrics: told how it went.
        hears_signals: SIGHUP is for this very process.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        keeper: FleetUpdater,
        metrics: RequestMetrics,
        *,
        hears_signals: bool = True,
    ) -> None:
        self._settings = settings
        self._load = load
        self._keeper = keeper
        self._metrics = metrics
        self._hears_signals = hears_signals
        self._stamps = self._look()

    async def run(self) -> None:
        """Look for changes, and listen to SIGHUP, until cancelled."""
        if self._hears_signals:
            loop = asyncio.get_running_loop()
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread, where there are no signals
                loop.add_signal_handler(signal.SIGHUP, self.reload)
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._look() != self._stamps:
                self.reload()

    def reload(self) -> None:
        """Read everything again now."""
        self._stamps = self._look()
        try:
            settings = self._load()
            has_changed = self._keeper.apply(settings.fleet, settings.models)
        except (SettingsError, UnknownEngineError) as error:
            self._metrics.count_reload(succeeded=False)
            for line in str(error).splitlines():
                logger.error("settings: %s; the fleet stays as it was", line)
            return
        self._metrics.count_reload(succeeded=True)
        if not has_changed:
            logger.info("settings: read again, the fleet is the same")
        self._name_what_must_wait(settings)
        self._settings = settings

    def _name_what_must_wait(self, settings: Settings) -> None:
        before, after = self._settings, settings
        for field in Settings.model_fields:
            if field not in {"backends", "backend_api_key"} and getattr(before, field) != getattr(after, field):
                logger.warning("settings: %s has changed; it counts from the next start", field.upper())

    def _look(self) -> list[FileStamp | None]:
        return stamps_of_settings(self._settings.config_file)
