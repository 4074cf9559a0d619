from __future__ import annotations

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, get_current_span

from inference_engine_proxy_server.tracing.trace_context import parent_in, with_parent
from inference_engine_proxy_server.wire.request_head import RequestHead, parse_request_head
from unit.wire.test_exchange import LIMITS

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALUE = f"00-{TRACE_ID}-{SPAN_ID}-01"
OURS = NonRecordingSpan(
    SpanContext(0xA, 0xB, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")]))
)
OUR_LINES = b"traceparent: 00-%032x-%016x-01\r\ntracestate: a=b\r\n" % (0xA, 0xB)


def head_with(lines: str) -> RequestHead:
    return parse_request_head(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}".encode(), LIMITS)


def parent(lines: str) -> SpanContext:
    return get_current_span(parent_in(head_with(lines))).get_span_context()


@pytest.mark.parametrize("name", ["traceparent", "TraceParent", "TRACEPARENT"])
def test_the_parent_is_found_whatever_the_case_of_its_name(name: str) -> None:
    found = parent(f"x: 1\r\n{name}:  {VALUE} \r\ny: 2\r\n")
    assert (f"{found.trace_id:032x}", f"{found.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert found.trace_flags.sampled
    assert found.is_remote


def test_states_in_several_fields_are_joined_in_order() -> None:
    found = parent(f"tracestate: a=1,b=2\r\ntraceparent: {VALUE}\r\nTraceState: c=3\r\n")
    assert list(found.trace_state.items()) == [("a", "1"), ("b", "2"), ("c", "3")]


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "tracestate: a=1\r\n",
        "traceparent: \r\n",
        f"traceparent: {VALUE}-extra\r\n",
        f"traceparent: ff-{TRACE_ID}-{SPAN_ID}-01\r\n",
        f"traceparent: 00-{'0' * 32}-{SPAN_ID}-01\r\n",
        f"traceparent: {VALUE}\r\ntraceparent: {VALUE}\r\n",
        f"x-traceparent: {VALUE}\r\n",
        f"x: traceparent: {VALUE}\r\n",
    ],
)
def test_anything_else_is_no_parent(lines: str) -> None:
    assert not parent(lines).is_valid


def test_our_span_replaces_the_clients_and_other_fields_stay() -> None:
    head = head_with(f"baggage: k=v\r\nTraceParent: {VALUE}\r\nx: 1\r\nTRACESTATE: z=1\r\ntracestate: y=2\r\nb3: 0\r\n")
    changed = with_parent(head, OURS)
    assert changed.passed_on == b"baggage: k=v\r\nx: 1\r\nb3: 0\r\n" + OUR_LINES
    assert changed.target == head.target


def test_the_head_itself_stays_because_later_requests_share_it() -> None:
    head = head_with(f"traceparent: {VALUE}\r\n")
    with_parent(head, OURS)
    assert head.passed_on == f"traceparent: {VALUE}\r\n".encode()
