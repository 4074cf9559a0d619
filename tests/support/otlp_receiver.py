"""A receiver of traces, made of OpenTelemetry's own service definitions: OTLP over gRPC and over HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.waiting import eventually

__all__ = ["OtlpReceiver", "ReceivedSpan", "otlp_receiver"]


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a span; attributes without the prefix of the proxy."""

    name: str
    attributes: Mapping[str, Any]
    at_ns: int


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span; ids in hexadecimal digits. Events are in order of their time, without the prefix of the proxy."""

    message: Span
    resource: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.message.name

    @property
    def trace_id(self) -> str:
        return self.message.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.message.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.message.parent_span_id.hex()

    @property
    def attributes(self) -> Mapping[str, Any]:
        return _as_mapping(self.message.attributes)

    @property
    def is_error(self) -> bool:
        return self.message.status.code == self.message.status.STATUS_CODE_ERROR

    @property
    def events(self) -> list[Event]:
        found = [
            Event(event.name.removeprefix("inference_proxy."), _as_mapping(event.attributes), event.time_unix_nano)
            for event in self.message.events
        ]
        return sorted(found, key=lambda event: event.at_ns)

    @property
    def event_names(self) -> list[str]:
        return [event.name for event in self.events]

    def event(self, name: str) -> Event:
        """The only event of this name."""
        [found] = [event for event in self.events if event.name == name]
        return found


class OtlpReceiver(services.TraceServiceServicer):
    """Keeps all spans that it receives.

    Attributes:
        grpc_url, http_url: where it listens.
        exports: the received batches.
    """

    grpc_url = http_url = ""

    def __init__(self) -> None:
        self.exports: list[messages.ExportTraceServiceRequest] = []

    def Export(self, request: messages.ExportTraceServiceRequest, context: object) -> object:  # noqa: N802 - its name in OTLP
        """Take a batch."""
        del context
        self.exports.append(request)
        return messages.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All spans so far."""
        return [
            ReceivedSpan(span, _as_mapping(batch.resource.attributes))
            for export in list(self.exports)
            for batch in export.resource_spans
            for scope in batch.scope_spans
            for span in scope.spans
        ]

    async def received(self, count: int = 1) -> list[ReceivedSpan]:
        """Wait for ``count`` spans, and return them; there must not be more."""
        await eventually(lambda: len(self.spans) >= count)
        spans = self.spans
        assert len(spans) == count, [span.name for span in spans]
        return spans

    async def one(self) -> ReceivedSpan:
        """Wait for a span, which must be the only one."""
        [span] = await self.received()
        return span


@contextmanager
def otlp_receiver(http_port: int = 0) -> Iterator[OtlpReceiver]:
    """A receiver on 127.0.0.1, on free ports except for a given one."""
    receiver = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            known = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if known:
                receiver.Export(messages.ExportTraceServiceRequest.FromString(body), None)
            self.send_response(200 if known else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            del arguments

    with ThreadingHTTPServer(("127.0.0.1", http_port), Handler) as http_server:
        server = grpc.server(ThreadPoolExecutor(2))
        services.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]  # generated
        receiver.grpc_url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        receiver.http_url = f"http://127.0.0.1:{http_server.server_address[1]}"
        server.start()
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            server.stop(None).wait()
            http_server.shutdown()
            thread.join()


def _as_mapping(attributes: Any) -> dict[str, Any]:
    return {one.key.removeprefix("inference_proxy."): _value(one.value) for one in _pairs(attributes)}


def _pairs(attributes: Any) -> Iterator[KeyValue]:
    yield from attributes


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
