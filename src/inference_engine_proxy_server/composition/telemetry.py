"""Builds the access log."""

from __future__ import annotations

import sys

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.telemetry.logs import AccessLog

__all__ = ["build_access_log"]


def build_access_log(settings: Settings, process: ProcessContext) -> AccessLog | None:
    """The access log on standard output; ``None`` when the settings turn it off."""
    if not settings.access_log:
        return None
    return AccessLog(
        sys.stdout, settings.log_format, is_shared=process.is_worker, has_probes=settings.access_log_probes
    )
