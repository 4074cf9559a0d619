from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from inference_engine_proxy_server.tracing.span_exporter import WatchedExporter, protocol_of

OURS = "inference_engine_proxy_server.tracing.span_exporter"


class Collector(SpanExporter):
    """Takes spans, or fails as OpenTelemetry's exporters do: with lines in their log."""

    failure: Exception | None = None
    takes = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.takes:
            return SpanExportResult.SUCCESS
        logging.getLogger("opentelemetry.exporter.otlp").error("Failed to export: %s", "connection refused")
        if self.failure is not None:
            raise self.failure
        return SpanExportResult.FAILURE


class Export:
    """Exports a span whenever it is called, at a time that the test sets."""

    def __init__(self) -> None:
        self.collector = Collector()
        self.now = 0.0
        self.exporter = WatchedExporter(self.collector, lambda: self.now)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._tracer = provider.get_tracer("test")

    def __call__(self, times: int = 1) -> None:
        for _ in range(times):
            self._tracer.start_span("a").end()


@pytest.fixture
def export() -> Export:
    return Export()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == OURS]


def test_lost_spans_are_reported_once_with_the_reason(export: Export, caplog: pytest.LogCaptureFixture) -> None:
    export.collector.takes = False
    export(5)
    assert messages(caplog) == [
        "tracing: the collector does not take spans, and 1 are lost; requests are not affected: "
        "Failed to export: connection refused"
    ]


def test_the_report_is_repeated_after_ten_minutes(export: Export, caplog: pytest.LogCaptureFixture) -> None:
    export.collector.takes = False
    export(5)
    export.now = 599
    export()
    export.now = 600
    export()
    assert [message.partition(";")[0] for message in messages(caplog)] == [
        "tracing: the collector does not take spans, and 1 are lost",
        "tracing: the collector does not take spans, and 7 are lost",
    ]


def test_recovery_is_reported_and_ends_the_count(export: Export, caplog: pytest.LogCaptureFixture) -> None:
    export()
    export.collector.takes = False
    export(3)
    export.collector.takes = True
    export(2)
    export.collector.takes = False
    export()
    lost, recovered, lost_again = messages(caplog)
    assert "does not take spans, and 1 are lost" in lost
    assert recovered == "tracing: the collector takes spans again; 3 were lost"
    assert "does not take spans, and 1 are lost" in lost_again


def test_an_exporter_that_raises_loses_only_its_spans(export: Export, caplog: pytest.LogCaptureFixture) -> None:
    export.collector.takes = False
    export.collector.failure = ValueError("no certificate")
    export()
    assert "ValueError: no certificate" in messages(caplog)[0]
    assert not any(record.exc_info for record in caplog.records)


def test_after_its_end_the_log_of_opentelemetry_is_as_before(export: Export) -> None:
    assert not logging.getLogger("opentelemetry.exporter").propagate
    export.exporter.shutdown()
    assert logging.getLogger("opentelemetry.exporter").propagate


@pytest.mark.parametrize(
    ("variables", "protocol"),
    [
        ({}, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": " "}, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "http/json"),
    ],
)
def test_the_protocol_for_traces_takes_precedence(variables: dict[str, str], protocol: str) -> None:
    assert protocol_of(variables) == protocol
