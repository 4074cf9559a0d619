"""Sends spans to a collector: in batches, from a thread, as the ``OTEL_`` variables say."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from inference_engine_proxy_server import __version__

__all__ = ["PROTOCOLS", "WatchedExporter", "exporter_class", "protocol_of", "start_provider"]

_SERVICE = "inference-engine-proxy-server"
_REMINDER_SECONDS = 600.0  # between two lines of the log about a collector that does not take spans
_exporter_logger = logging.getLogger("opentelemetry.exporter")
logger = logging.getLogger(__name__)


PROTOCOLS: Mapping[str, str] = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
"""The module that exports spans, by protocol; the default of OpenTelemetry comes first."""


def protocol_of(environ: Mapping[str, str]) -> str:
    """The protocol that the ``OTEL_`` variables in ``environ`` choose; it may be an unknown one."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    chosen = (environ.get(name, "").strip() for name in names)
    return next(filter(None, chosen), next(iter(PROTOCOLS)))


def exporter_class(protocol: str) -> Callable[[], SpanExporter]:
    """The class of exporters for ``protocol``. Its import takes long, so it must not wait for the event loop to run.

    Raises:
        ModuleNotFoundError: a package is missing.
    """
    found: Callable[[], SpanExporter] = import_module(PROTOCOLS[protocol]).OTLPSpanExporter
    return found


def start_provider(make_exporter: Callable[[], SpanExporter]) -> TracerProvider:
    """Start a provider of tracers, with its thread. It must not be called in a process that will be forked."""
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(WatchedExporter(make_exporter())))
    return provider


def _resource() -> Resource:
    """The description of this process; what the ``OTEL_`` variables say takes precedence."""
    stated = OTELResourceDetector().detect()
    ours = {
        "service.name": _SERVICE,
        "service.version": __version__,
        "service.instance.id": str(uuid.uuid4()),  # workers differ by it
    }
    return Resource.create({**ours, **stated.attributes})


class _LatestMessage(logging.Handler):
    """Keeps the latest message, in place of the log."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


class WatchedExporter(SpanExporter):
    """Logs that the collector does not take spans: once, and again every ten minutes, until it does.

    OpenTelemetry's own exporters would log each attempt, with a traceback.

    Args:
        exporter: sends the spans.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, exporter: SpanExporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._exporter = exporter
        self._clock = clock
        self._latest = _LatestMessage()
        self._lost = 0  # spans, since the collector last took some
        self._complained_at: float | None = None
        _exporter_logger.addHandler(self._latest)
        _exporter_logger.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ``spans``; called in the thread of the processor. Spans that cannot be sent are lost."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._latest.text = f"{type(error).__name__}: {error}"
        if result is SpanExportResult.SUCCESS:
            self._recover()
        else:
            self._lost += len(spans)
            self._complain()
        return result

    def _recover(self) -> None:
        if self._complained_at is not None:
            logger.warning("tracing: the collector takes spans again; %d were lost", self._lost)
            self._complained_at, self._lost = None, 0

    def _complain(self) -> None:
        now = self._clock()
        if self._complained_at is None or now >= self._complained_at + _REMINDER_SECONDS:
            self._complained_at = now
            logger.error(
                "tracing: the collector does not take spans, and %d are lost; requests are not affected: %s",
                self._lost,
                self._latest.text or "no reason given",
            )

    def shutdown(self) -> None:
        """Stop; spans that are being sent again are given up."""
        self._exporter.shutdown()
        _exporter_logger.removeHandler(self._latest)
        _exporter_logger.propagate = True

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what the exporter holds: nothing, because the processor holds all spans."""
        return self._exporter.force_flush(timeout_millis)
