"""Reads and writes the header fields of W3C Trace Context: ``traceparent`` and ``tracestate``."""

from __future__ import annotations

import re
from copy import copy

from opentelemetry.context import Context
from opentelemetry.trace import Span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["parent_in", "with_parent"]

_LINE = re.compile(rb"(?:^|(?<=\n))(traceparent|tracestate):[ \t]*+([^\r\n]*)\r\n", re.IGNORECASE)
_NONE = Context()
_propagator = TraceContextTextMapPropagator()


def parent_in(head: RequestHead) -> Context:
    """The client's span; an empty context if ``head`` names none, or not exactly one."""
    fields: dict[bytes, list[bytes]] = {}
    for name, value in _LINE.findall(head.passed_on):
        fields.setdefault(name.lower(), []).append(value.strip())
    if len(fields.get(b"traceparent", ())) != 1:
        return _NONE
    # Trace Context, 3.3.1: tracestate may come in several fields, which are joined in order.
    carrier = {name.decode(): b",".join(values).decode("latin-1") for name, values in fields.items()}
    return _propagator.extract(carrier, _NONE)


def with_parent(head: RequestHead, span: Span) -> RequestHead:
    """A copy of ``head`` in which ``span`` replaces the client's span; equal header sections share one head."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, set_span_in_context(span, _NONE))
    ours = "".join(f"{name}: {value}\r\n" for name, value in carrier.items())
    changed = copy(head)
    changed.passed_on = _LINE.sub(b"", head.passed_on) + ours.encode("latin-1")
    return changed
