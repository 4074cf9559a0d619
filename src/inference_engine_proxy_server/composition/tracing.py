"""Builds the tracing of requests. While it is off, requests are of the usual class and are handled as usual."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.timed_request import TimedRequest
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.processes.process_context import Loops
from inference_engine_proxy_server.requests.destinations import ANSWERED_HERE
from inference_engine_proxy_server.tasks.deadlines import Deadlines

__all__ = ["Traces", "build_traces"]

_Handle = Callable[[ProxiedRequest], Coroutine[None, None, None]]
_Observe = Callable[[ProxiedRequest], None]


@dataclass(frozen=True, slots=True)
class Traces:
    """The places in which requests are traced; by default, none is.

    Attributes:
        request_class: the class of requests.
        begin, end: called at the beginning and at the end of each forwarded request, which is of this class.
        loops: background tasks.
    """

    request_class: type[ProxiedRequest]
    begin: Callable[[Any], None] | None = None
    end: Callable[[Any], None] | None = None
    loops: Loops = field(default_factory=dict)

    def handling(self, handle: _Handle) -> _Handle:
        """``handle``, after a trace has begun."""
        begin = self.begin
        if begin is None:
            return handle

        def handle_traced(request: ProxiedRequest) -> Coroutine[None, None, None]:
            if request.head.destination not in ANSWERED_HERE:
                begin(request)
            return handle(request)

        return handle_traced

    def observing(self, observe: _Observe) -> _Observe:
        """``observe``, and the end of the trace."""
        end = self.end
        if end is None:
            return observe

        def observe_traced(request: ProxiedRequest) -> None:
            observe(request)
            end(request)

        return observe_traced


def build_traces(settings: Settings, fleet: Fleet, deadlines: Deadlines) -> Traces:
    """The tracing of requests, as TRACING and the ``OTEL_`` variables say.

    Raises:
        SettingsError: a package is missing, or a variable has a value that is not supported.
    """
    if not settings.tracing:
        return Traces(TimedRequest if settings.server_timing else ProxiedRequest)
    try:
        from inference_engine_proxy_server.tracing import span_exporter
        from inference_engine_proxy_server.tracing.tracing import TracedRequest, TracedTimedRequest, Tracing

        protocol = span_exporter.protocol_of(os.environ)
        if protocol not in span_exporter.PROTOCOLS:
            allowed = ", ".join(span_exporter.PROTOCOLS)
            raise SettingsError([f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: it must be one of {allowed}"])
        make_exporter = span_exporter.exporter_class(protocol)
    except ModuleNotFoundError as error:
        message = (
            f"TRACING is on, and the package {error.name} is missing: install the extra with "
            f"'pip install inference-engine-proxy-server[otel]'"
        )
        raise SettingsError([message]) from error
    tracing = Tracing(
        # Not before the process serves: a supervisor forks workers, and a thread would not survive that.
        start=partial(span_exporter.start_provider, make_exporter),
        clock=deadlines.clock,
        scheme="http" if settings.tls_cert_file is None else "https",
        provider_of=partial(_provider_of, fleet),
    )
    request_class = TracedTimedRequest if settings.server_timing else TracedRequest
    return Traces(request_class, tracing.begin, tracing.end, {"tracing": tracing.run})


def _provider_of(fleet: Fleet, url: str | None) -> str | None:
    """The kind of engine at ``url``, as its models report it; ``None`` if they do not, or if ``url`` left the fleet."""
    for backend in fleet.backends:
        if backend.url == url and backend.serving.models:
            owner = backend.serving.models[0].get("owned_by")
            return owner if isinstance(owner, str) else None
    return None
