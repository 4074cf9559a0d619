"""Traces: one span for each forwarded request, received by OpenTelemetry's own services."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from end_to_end.breaking_engine import (
    Breaks,
    closes,
    closes_after_one_word,
    rejects,
    two_engines,
)
from end_to_end.conftest import StartProxy
from end_to_end.test_assembled_faults import Engine as LlamaLikeEngine
from support.engine import STREAM_HEAD, Engine, answers_with, chunk, fails_with, hangs
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import Call, chat, send
from support.live_proxy import live_proxy
from support.llama_server import LlamaServer
from support.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_receiver
from support.ports import unused_url
from support.program import program, run_command
from support.running_proxy import RunningProxy
from support.waiting import eventually
from support.websocket_engine import WebSocketEngine, websocket

CHAT = "/v1/chat/completions"
TRACE_ID, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{CLIENT_SPAN}-01"
ANSWER = (
    b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"a","tool_calls":[{"id":"call-1"}]}}],'
    b'"model":"m-q4","usage":{"prompt_tokens":7,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":5}},'
    b'"id":"chatcmpl-1"}'
)
EVENTS = (
    b'data: {"id":"chatcmpl-2","model":"m-q4","choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n',
    b'data: {"id":"chatcmpl-2","model":"m-q4","choices":[{"delta":{},"finish_reason":"length"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """It gets the spans of all proxies of the test process, within 50 ms."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_url)
        yield receiver


def parent(request: bytes) -> tuple[str, ...]:
    """Trace and span that an engine is asked to continue, and whether they are sampled (Trace Context, 3.2)."""
    [value] = fields(request, "traceparent")
    version, trace_id, span_id, flags = value.split("-")
    assert version == "00"
    return trace_id, span_id, "sampled" if int(flags, 16) & 1 else "not sampled"


def as_parent(span: ReceivedSpan) -> tuple[str, ...]:
    return span.trace_id, span.span_id, "sampled"


def fields(request: bytes, name: str) -> list[str]:
    """The values of a header field that an engine received."""
    return re.findall(rf"^{name}: (.*)\r$", request.decode("latin-1"), re.MULTILINE | re.IGNORECASE)


async def streams(connection: EngineConnection) -> None:
    connection.send(STREAM_HEAD, *map(chunk, EVENTS), b"0\r\n\r\n")


async def breaks_off(connection: EngineConnection) -> None:
    connection.send(STREAM_HEAD, chunk(EVENTS[0]))
    connection.reset()


async def test_the_span_is_a_child_of_the_clients_and_the_parent_of_the_engines(receiver: OtlpReceiver) -> None:
    async with Engine(answers_with(http_reply(ANSWER))) as engine, live_proxy(engine.url, tracing=True) as proxy:
        reply = await proxy.post(traceparent=PARENT, tracestate="vendor=a,other=b")
        span = await receiver.one()

    assert reply.body == ANSWER
    assert (span.trace_id, span.parent_id) == (TRACE_ID, CLIENT_SPAN)
    assert parent(engine.served[0]) == as_parent(span)
    assert fields(engine.served[0], "tracestate") == ["vendor=a,other=b"]
    assert span.message.kind == span.message.SPAN_KIND_SERVER
    assert span.resource["service.name"] == "inference-engine-proxy-server"


@pytest.mark.parametrize(
    "given",
    [{}, {"traceparent": "00-nonsense"}, {"tracestate": "a=b"}, {"traceparent": f"{PARENT}\r\ntraceparent: {PARENT}"}],
    ids=["none", "invalid", "only a state", "two"],
)
async def test_without_a_valid_parent_a_new_trace_begins(receiver: OtlpReceiver, given: dict[str, str]) -> None:
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        await proxy.post(**given)
        span = await receiver.one()

    assert span.parent_id == ""
    assert span.trace_id != TRACE_ID
    assert parent(engine.served[0]) == as_parent(span)
    assert fields(engine.served[0], "tracestate") == []


async def test_requests_of_one_connection_have_spans_of_their_own(receiver: OtlpReceiver) -> None:
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        for _ in range(3):
            await proxy.http.post(CHAT, json=chat(), headers={"traceparent": PARENT})
        spans = await receiver.received(3)

    assert {span.trace_id for span in spans} == {TRACE_ID}
    assert len({span.span_id for span in spans}) == 3
    assert {parent(request) for request in engine.served} == {as_parent(span) for span in spans}


async def test_without_tracing_the_context_of_the_client_passes_through(receiver: OtlpReceiver) -> None:
    async with Engine() as engine, live_proxy(engine.url) as proxy:
        await proxy.post(TraceParent=PARENT, tracestate="vendor=a,other=b")

    assert b"\r\nTraceParent: " + PARENT.encode() + b"\r\ntracestate: vendor=a,other=b\r\n" in engine.served[0]
    assert receiver.spans == []


async def test_a_span_describes_the_request_and_the_reply(receiver: OtlpReceiver) -> None:
    keys: dict[str, Any] = {"api_keys": ("team-a:secret-of-team-a",)}
    async with (
        Engine(answers_with(http_reply(ANSWER))) as engine,
        live_proxy(engine.url, tracing=True, fleet_file="models: {m: {aliases: [gpt]}}", **keys) as proxy,
    ):
        body = {
            "model": "gpt",
            "messages": [],
            "temperature": 0.5,
            "top_p": "wrong",
            "top_k": 3,
            "max_tokens": 9,
            "n": 2,
        }
        reply = await proxy.post(body=body, authorization="Bearer secret-of-team-a")
        span = await receiver.one()

    assert span.name == "chat gpt"
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.path": CHAT,
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llamacpp",
        "gen_ai.request.model": "gpt",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 3,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "m-q4",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "request_id": reply.headers["x-request-id"],
        "outcome": "complete",
        "backend": engine.url,
        "api_key": "team-a",
        "sent_bytes": span.attributes["sent_bytes"],
    }
    assert span.event_names == ["connected", "first_byte", "last_byte"]
    assert not span.is_error


async def test_a_stream_has_the_time_of_its_first_token(receiver: OtlpReceiver) -> None:
    async with Engine(streams) as engine, live_proxy(engine.url, tracing=True, assemble_replies=False) as proxy:
        async with proxy.call(CHAT) as call:
            call.send()
            assert (await call.reply()).body == b"".join(EVENTS)
        span = await receiver.one()

    assert span.event_names == ["connected", "first_token", "last_byte"]
    times = [
        span.message.start_time_unix_nano,
        *(event.at_ns for event in span.events),
        span.message.end_time_unix_nano,
    ]
    assert all(one <= next_one for one, next_one in pairwise(times))
    assert abs(time.time_ns() - times[-1]) < 60e9
    assert span.attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx(
        (times[2] - times[0]) / 1e9, abs=1e-6
    )
    assert span.attributes["gen_ai.response.id"] == "chatcmpl-2"
    assert span.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert span.attributes["gen_ai.usage.output_tokens"] == 2


async def test_waiting_in_the_queue_is_visible(receiver: OtlpReceiver) -> None:
    async with Engine() as engine:
        engine.slots = 1
        engine.freed.clear()
        async with live_proxy(engine.url, tracing=True, backend_queue_allowance=0) as proxy:
            async with asyncio.TaskGroup() as group:
                group.create_task(proxy.post())
                await engine.held.wait()
                group.create_task(proxy.post())
                await eventually(lambda: waits_in_queue(proxy))
                engine.freed.set()
            one, other = sorted(await receiver.received(2), key=lambda span: len(span.events))

    assert one.event_names == ["connected", "first_byte", "last_byte"]
    assert other.event_names == ["queued", "dequeued", "connected", "first_byte", "last_byte"]


async def waits_in_queue(proxy: RunningProxy) -> bool:
    return await proxy.metric("queue_requests") == 1


async def test_a_retry_belongs_to_the_same_trace(receiver: OtlpReceiver) -> None:
    async with Engine(fails_with(503)) as bad, Engine() as good:
        async with live_proxy(bad.url, good.url, tracing=True, balancing_policy="round_robin") as proxy:
            while not bad.served:
                await proxy.post()
            spans = await receiver.received(len(good.served))

    [span] = [span for span in spans if "attempt_failed" in span.event_names]
    assert span.event_names == ["connected", "attempt_failed", "connected", "first_byte", "last_byte"]
    assert span.event("attempt_failed").attributes == {
        "backend": bad.url,
        "error.type": "backend_declined",
        "http.response.status_code": 503,
    }
    assert span.attributes["backend"] == good.url
    assert not span.is_error
    assert parent(bad.served[0]) == as_parent(span)
    assert as_parent(span) in {parent(request) for request in good.served}


async def test_a_resumed_stream_is_one_trace_on_both_engines(receiver: OtlpReceiver) -> None:
    async with two_engines(closes, tracing=True) as fleet:
        await fleet.stream(headers={"traceparent": PARENT})
        span = await receiver.one()

    assert span.trace_id == TRACE_ID
    assert span.event_names == ["connected", "first_token", "attempt_failed", "resumed", "connected", "last_byte"]
    broken, continued = (event.attributes["backend"] for event in span.events if event.name == "connected")
    assert span.event("resumed").attributes == {"backend": broken, "error.type": "backend_disconnected", "tokens": 3}
    assert broken != continued == span.attributes["backend"]
    assert span.attributes["resumes"] == 1
    assert not span.is_error
    assert [parent(request) for request in fleet.plan.requests] == [as_parent(span)] * 2


@pytest.mark.parametrize(
    ("steps", "body", "rule"),
    [
        ((closes,), {"n": 2}, "several_answers"),
        ((closes, rejects), {}, "not_continued"),
        ((closes_after_one_word,), {}, "one_event"),
    ],
    ids=["excluded-request", "rejected-continuation", "excluded-break"],
)
async def test_the_rule_that_keeps_a_stream_from_being_resumed_is_visible(
    receiver: OtlpReceiver, steps: tuple[Breaks, ...], body: dict[str, Any], rule: str
) -> None:
    async with two_engines(*steps, tracing=True) as fleet:
        await fleet.stream(**body)
        span = await receiver.one()

    assert span.event("not_resumed").attributes["rule"] == rule
    assert span.event("not_resumed").attributes["backend"]


async def test_a_fallback_is_visible(receiver: OtlpReceiver) -> None:
    fleet_file = "models: {large: {fallbacks: [m]}}"
    async with (
        Engine(owner="vllm") as engine,
        live_proxy(engine.url, unused_url(), tracing=True, fleet_file=fleet_file) as proxy,
    ):
        assert (await proxy.post(body=chat() | {"model": "large"})).status == 200
        span = await receiver.one()

    assert span.event("fallback").attributes == {"model": "large", "fallback": "m", "reason": "unavailable"}
    assert span.attributes["gen_ai.request.model"] == "large"


async def test_a_reply_that_cannot_be_assembled_is_visible(receiver: OtlpReceiver) -> None:
    async with LlamaLikeEngine(extra={"unknown": 1}) as engine, live_proxy(engine.url, tracing=True) as proxy:
        assert (await proxy.post()).json["answered"] == "without a stream"
        span = await receiver.one()

    assert span.event_names == ["connected", "repeated", "connected", "first_byte", "last_byte"]
    assert span.event("repeated").attributes == {"reason": "unknown_members"}
    assert {parent(request) for request in engine.posts} == {as_parent(span)}


async def test_a_connection_that_its_engine_has_closed_is_a_failed_attempt(receiver: OtlpReceiver) -> None:
    async def answers_once(connection: EngineConnection) -> None:
        if sum(request.startswith(b"POST") for request in connection.requests) > 1:
            connection.reset()
        else:
            connection.send(http_reply(ANSWER))

    async with Engine(answers_once, owner="vllm") as engine, live_proxy(engine.url, tracing=True) as proxy:
        for _ in range(2):
            assert (await proxy.post()).body == ANSWER
        *_, span = sorted(await receiver.received(2), key=lambda span: span.message.start_time_unix_nano)

    assert span.event_names == ["attempt_failed", "connected", "first_byte", "last_byte"]
    assert span.event("attempt_failed").attributes == {"backend": engine.url, "error.type": "backend_disconnected"}


async def test_only_replies_that_are_traced_are_read(receiver: OtlpReceiver) -> None:
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        not_sampled = PARENT.removesuffix("01") + "00"
        await proxy.post(**{"accept-encoding": "gzip", "traceparent": not_sampled})
        await proxy.post(**{"accept-encoding": "gzip"})
        await receiver.one()

    assert [fields(request, "accept-encoding") for request in engine.served] == [["gzip"], []]


async def test_a_broken_reply_is_an_error(receiver: OtlpReceiver) -> None:
    async with Engine(breaks_off) as engine, live_proxy(engine.url, tracing=True, stream_resume="off") as proxy:
        async with proxy.call(CHAT) as call:
            call.send()
            assert not (await call.reply()).complete
        span = await receiver.one()

    assert span.is_error
    assert span.attributes["error.type"] == "backend_disconnected"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["outcome"] == "broken"
    assert span.event_names == ["connected", "first_token", "attempt_failed"]


async def test_an_error_of_the_engine_has_its_status(receiver: OtlpReceiver) -> None:
    async with Engine(fails_with(500)) as engine, live_proxy(engine.url, tracing=True) as proxy:
        assert (await proxy.post()).status == 500
        span = await receiver.one()

    assert span.is_error
    assert span.attributes["error.type"] == "500"
    assert span.attributes["backend"] == engine.url


async def test_an_error_of_the_proxy_has_its_code(receiver: OtlpReceiver) -> None:
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        engine.refuse()
        reply = await proxy.post()
        span = await receiver.one()

    assert reply.status in (502, 503)
    assert span.is_error
    assert span.attributes["error.type"] == reply.json["error"]["code"]
    assert span.attributes["http.response.status_code"] == reply.status
    assert "backend" not in span.attributes


async def test_the_clients_mistake_is_no_error_of_the_server(receiver: OtlpReceiver) -> None:
    async with Engine(owner="vllm") as engine, live_proxy(engine.url, tracing=True) as proxy:
        reply = await proxy.post(body=chat() | {"model": "unknown"})
        span = await receiver.one()

    assert reply.status == 404
    assert not span.is_error
    assert span.attributes["error.type"] == "model_not_found"
    assert span.name == "chat unknown"


async def test_a_client_that_leaves_ends_its_span(receiver: OtlpReceiver) -> None:
    async with Engine(hangs) as engine, live_proxy(engine.url, tracing=True) as proxy:
        async with proxy.call(CHAT) as call:
            call.send()
            await eventually(lambda: engine.served)
        span = await receiver.one()

    assert span.attributes["outcome"] == "client_left"
    assert span.attributes["http.response.status_code"] == 499
    assert not span.is_error
    assert span.event_names == ["connected"]


async def test_other_paths_are_named_by_their_method(receiver: OtlpReceiver) -> None:
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        await proxy.post("/v1/rerank?key=secret", body={"model": "m", "query": "private"})
        span = await receiver.one()

    assert span.name == "POST"
    assert span.attributes["url.path"] == "/v1/rerank"
    assert span.attributes["gen_ai.request.model"] == "m"
    assert "secret" not in str(span.message)
    assert "private" not in str(span.message)


async def test_a_name_that_is_no_text_does_not_cost_the_batch(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")  # one batch, at the end
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        assert (await proxy.post(body=b'{"model": "a\\ud800", "messages": []}')).status == 200
        await proxy.post()

    # The exporter would drop a batch with a lone surrogate.
    assert sorted(span.name for span in receiver.spans) == ["chat", "chat a\ufffd\ufffd\ufffd"]


async def test_the_proxys_own_paths_have_no_spans(receiver: OtlpReceiver) -> None:
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        for path in ("/health", "/metrics", "/v1/models", "/livez"):
            assert (await send(proxy.url, path)).status == 200
        await proxy.post()
        assert (await receiver.one()).attributes["url.path"] == CHAT


async def test_a_websocket_is_one_span(receiver: OtlpReceiver) -> None:
    async with WebSocketEngine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        async with websocket(proxy, additional_headers={"traceparent": PARENT}) as client:
            await client.send("hello")
            assert await client.recv() == "hello"
            assert receiver.spans == []
        span = await receiver.one()

    assert span.attributes["http.response.status_code"] == 101
    assert span.attributes["url.path"] == "/v1/realtime"
    assert engine.handshakes[0].headers["traceparent"] == f"00-{TRACE_ID}-{span.span_id}-01"


async def test_a_client_that_does_not_sample_is_not_traced(receiver: OtlpReceiver) -> None:
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        await proxy.post(traceparent=PARENT.removesuffix("01") + "00", tracestate="vendor=a")
        await proxy.post()
        await receiver.one()

    trace_id, span_id, sampled = parent(engine.served[0])
    assert (trace_id, sampled) == (TRACE_ID, "not sampled")
    assert span_id != CLIENT_SPAN
    assert fields(engine.served[0], "tracestate") == ["vendor=a"]


@pytest.mark.parametrize(("sampler", "count"), [("always_off", 0), ("parentbased_always_off", 1), ("always_on", 3)])
async def test_the_sampler_decides(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, sampler: str, count: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        await proxy.post()
        await proxy.post(traceparent=PARENT)
        await proxy.post(traceparent=PARENT.removesuffix("01") + "00")

    assert len(receiver.spans) == count  # the end of the proxy has sent all


async def test_grpc_and_the_variables_of_opentelemetry(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc_url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "llm-gateway")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,service.instance.id=one")
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        await proxy.post()
        span = await receiver.one()

    assert span.resource["service.name"] == "llm-gateway"
    assert span.resource["deployment.environment.name"] == "staging"
    assert span.resource["service.instance.id"] == "one"


async def test_spans_are_sent_in_batches_and_the_last_one_at_the_end(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        for _ in range(5):
            await proxy.post()
        assert receiver.exports == []

    assert len(receiver.exports) == 1
    assert len(receiver.spans) == 5


async def test_the_sdk_can_be_disabled(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        await proxy.post(traceparent=PARENT)

    assert fields(engine.served[0], "traceparent") == [PARENT]
    assert receiver.spans == []


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_workers_trace_their_own_requests(tmp_path: Path, receiver: OtlpReceiver, protocol: str) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_url if protocol == "grpc" else receiver.http_url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    async with Engine() as engine, program(tmp_path, engine, WORKERS="2", TRACING="on", **variables) as proxy:

        async def both_have_traced() -> bool:
            await proxy.post()
            return len({span.resource["service.instance.id"] for span in receiver.spans}) == 2

        await eventually(both_have_traced)
        await eventually(lambda: len(receiver.spans) == len(engine.served))

    assert {span.attributes["outcome"] for span in receiver.spans} == {"complete"}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_dead_collector_delays_no_request_and_not_the_end(tmp_path: Path, protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never answers
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        async with Engine() as engine, program(tmp_path, engine, TRACING="on", **variables) as proxy:

            async def is_reported() -> bool:
                assert (await proxy.post()).status == 200
                return "the collector does not take spans" in proxy.events

            await eventually(is_reported)
        events = proxy.events

    assert events.count("tracing: ") == 1
    assert "opentelemetry" not in events.lower()


async def test_a_collector_that_comes_back_gets_spans_again(tmp_path: Path, receiver: OtlpReceiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    async with (
        Engine() as engine,
        program(tmp_path, engine, TRACING="on", OTEL_BSP_SCHEDULE_DELAY="50", **variables) as proxy,
    ):
        await proxy.post()
        await eventually(lambda: "the collector does not take spans, and 1 are lost" in proxy.events)
        with otlp_receiver(port) as revived:
            await proxy.post()
            await revived.one()
            await eventually(lambda: "the collector takes spans again; 1 were lost" in proxy.events)


async def test_variables_that_opentelemetry_rejects_cost_the_traces_only(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5000")  # more than the queue holds
    async with Engine() as engine, live_proxy(engine.url, tracing=True) as proxy:
        assert (await proxy.post(traceparent=PARENT)).status == 200

    assert fields(engine.served[0], "traceparent") == [PARENT]
    assert "tracing: OpenTelemetry cannot start, and no request is traced: " in caplog.text


def test_an_unknown_protocol_stops_the_start(tmp_path: Path) -> None:
    ended = run_command(
        tmp_path,
        "serve",
        PORT="0",
        BACKENDS="http://127.0.0.1:9",
        TRACING="on",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/json",
    )

    assert ended.returncode == 2
    assert "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json': it must be one of http/protobuf, grpc" in ended.stderr


async def test_real_servers_report_the_tokens_and_survive_in_one_trace(
    receiver: OtlpReceiver, start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    proxy = start_proxy(*two_slow_servers, TRACING="on", SLOW_START_SECONDS="0", **variables)
    whole = await proxy.post(body=chat(5))
    [first] = await receiver.received(1)
    async with Call(proxy.url, CHAT, chat(300, stream=True), headers={"traceparent": PARENT}) as call:
        call.send()
        await call.head()
        for _ in range(20):
            await call.event()
        next(server for server in two_slow_servers if server.url == call.headers["x-backend"]).kill()
        reply = await call.reply()
    _, second = await receiver.received(2)

    usage = whole.json["usage"]
    assert first.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert first.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 5
    assert first.attributes["gen_ai.response.id"] == whole.json["id"]
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert second.trace_id == TRACE_ID
    assert second.event_names == ["connected", "first_token", "attempt_failed", "resumed", "connected", "last_byte"]
