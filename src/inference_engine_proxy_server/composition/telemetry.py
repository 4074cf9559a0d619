"""Builds the access log."""

from __future__ import annotations

import sys

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.telemetry.access_log import AccessLog
from inference_engine_proxy_server.telemetry.finished_requests import FinishedRequests
from inference_engine_proxy_server.telemetry.line_writer import LineWriter, sink_of
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["build_access_log"]


def build_access_log(
    settings: Settings, process: ProcessContext, finished: FinishedRequests, metrics: RequestMetrics
) -> AccessLog | None:
    """The access log on standard output; ``None`` when the settings turn it off."""
    if not settings.access_log:
        return None
    writer = LineWriter(sink_of(sys.stdout), is_shared=process.is_worker)
    metrics.add_counter("access_log_dropped_lines", "Lost lines of the access log.", lambda: writer.dropped)
    return AccessLog(finished, writer, settings.log_format, has_probes=settings.access_log_probes)
