"""What becomes of a request, whatever its backends do; over real sockets, on scripted engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.request_queue import QueueLimits
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.wire import reply_relay
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.outcome import CLIENT_GONE, Outcome
from support.fakes.engine import EngineConnection, FakeEngine, Script, answering, http_reply
from support.fakes.front import until
from support.pools import READY, ForwardingFront, make_forwarder, publish
from support.ports import free_port, unused_url

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"n": 1}\n\n'


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


def error_of(reply: bytes) -> dict[str, object]:
    error: dict[str, object] = json.loads(reply.partition(b"\r\n\r\n")[2])["error"]
    return error


async def dies_with_the_request(connection: EngineConnection) -> None:
    await connection.request()
    connection.reset()


async def closes_when_asked_twice(connection: EngineConnection) -> None:
    await connection.request()
    connection.send(http_reply())
    await connection.first_bytes()
    connection.finish()


async def test_reply_is_relayed_byte_for_byte_and_names_its_backend() -> None:
    async with FakeEngine(answering(http_reply(b"\x00\xff body", 418, b"x-own: kept\r\n"))) as engine:
        async with ForwardingFront(engine) as proxy:
            reply = await proxy.post()
    head, body = reply.split(b"\r\n\r\n", 1)
    assert body == b"\x00\xff body"
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 418")
    assert b"x-own: kept" in lines
    assert b"x-backend: " + engine.url.encode() in lines
    assert any(line.startswith(b"x-request-id: ") for line in lines)


async def test_engine_gets_the_request_unchanged_except_for_host() -> None:
    async with FakeEngine(answering(http_reply())) as engine, ForwardingFront(engine) as proxy:
        await proxy.send(
            b"PUT /any/%7Epath?q=%20&r HTTP/1.1\r\nHost: public.example\r\nX-Request-ID: my-id\r\n"
            b"Authorization: Bearer k\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
        )
    head, body = engine.requests[0].split(b"\r\n\r\n", 1)
    assert body == b"abc"
    assert head.split(b"\r\n")[0] == b"PUT /any/%7Epath?q=%20&r HTTP/1.1"
    fields = {line.partition(b": ")[0].lower(): line.partition(b": ")[2] for line in head.split(b"\r\n")[1:]}
    assert fields == {
        b"host": engine.url.removeprefix("http://").encode(),
        b"x-request-id": b"my-id",
        b"authorization": b"Bearer k",
        b"content-length": b"3",
        b"x-forwarded-for": b"127.0.0.1",
        b"x-forwarded-host": b"public.example",
        b"x-forwarded-proto": b"http",
        b"via": b"1.1 this-proxy",
    }


async def test_refused_connection_moves_the_request_and_ejects_the_backend() -> None:
    async with FakeEngine(answering(http_reply())) as alive:
        async with ForwardingFront(unused_url(), alive) as proxy:
            replies = [await proxy.post(path="/v1/responses") for _ in range(16)]
            assert {status_of(reply) for reply in replies} == {200}
            dead, other = proxy.pool.backends
            assert (dead.takes_requests, dead.recheck.is_set(), dead.load.leases) == (False, True, 0)
            assert (other.takes_requests, other.load.leases) == (True, 0)


async def test_unreachable_fleet_is_503_with_retry_after() -> None:
    port = free_port()
    async with ForwardingFront(f"http://127.0.0.1:{port}") as proxy:
        reply = await proxy.post()
    assert status_of(reply) == 503
    assert b"\r\nretry-after: 3\r\n" in reply
    assert error_of(reply)["code"] == "no_backend_available"
    assert str(port).encode() not in reply.partition(b"\r\n\r\n")[2]


async def test_repeatable_request_survives_a_backend_that_dies() -> None:
    async with FakeEngine(dies_with_the_request) as dying, FakeEngine(answering(http_reply())) as alive:
        async with ForwardingFront(dying, alive) as proxy:
            await post_until_chosen(proxy, dying)
            assert not proxy.pool.backends[0].takes_requests
    assert len(dying.requests) == 1


async def post_until_chosen(proxy: ForwardingFront, engine: FakeEngine) -> None:
    """Post until ``engine`` has been chosen (ties fall at random); each reply must be 200."""
    for _ in range(64):
        assert status_of(await proxy.post()) == 200
        if engine.requests:
            return
    raise AssertionError("never chosen")


async def test_request_with_side_effects_is_not_repeated() -> None:
    async with FakeEngine(dies_with_the_request) as first, FakeEngine(dies_with_the_request) as second:
        async with ForwardingFront(first, second) as proxy:
            reply = await proxy.post(path="/v1/responses")
    assert status_of(reply) == 502
    assert error_of(reply)["code"] == "backend_disconnected"
    assert len(first.requests) + len(second.requests) == 1


async def test_request_that_kills_engines_kills_two_at_most() -> None:
    async with (
        FakeEngine(dies_with_the_request) as first,
        FakeEngine(dies_with_the_request) as second,
        FakeEngine(dies_with_the_request) as third,
        ForwardingFront(first, second, third) as proxy,
    ):
        reply = await proxy.post()
    assert status_of(reply) == 502
    assert len(first.requests) + len(second.requests) + len(third.requests) == 2


async def test_request_that_kills_engines_on_kept_connections_kills_two_at_most() -> None:
    async def answers_once(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(http_reply())
        await connection.request()
        engines[0].refuse()
        connection.reset()

    async with FakeEngine(answers_once) as first:
        async with FakeEngine(dies_with_the_request) as second, FakeEngine(dies_with_the_request) as third:
            engines = [first]
            async with ForwardingFront(first, second, third) as proxy:
                for other in proxy.pool.backends[1:]:
                    proxy.pool.report_refused_connection(other)
                assert status_of(await proxy.post()) == 200
                publish(proxy.pool)
                leases = [
                    proxy.pool.occupy(other) for other in proxy.pool.backends[1:]
                ]  # so that the first is chosen first
                assert status_of(await proxy.post()) == 502
                for lease in leases:
                    lease.close()
    assert (len(first.requests), len(second.requests) + len(third.requests)) == (2, 1)


async def test_error_of_the_proxy_names_no_backend() -> None:
    async with FakeEngine(dies_with_the_request) as only, ForwardingFront(only) as proxy:
        reply = await proxy.post()
        assert b"x-backend" not in reply
        assert proxy.observed[0].backend is None


async def test_a_record_counts_attempts_and_names_the_policy() -> None:
    async with FakeEngine(answering(http_reply())) as alive:
        async with ForwardingFront(unused_url(), alive) as proxy:
            for _ in range(64):
                await proxy.post()
                if proxy.observed[-1].attempts > 1:
                    break
            record = proxy.observed[-1].record(0.0)
            assert (record.attempts, record.policy, record.backend) == (2, "least_requests", alive.url)
            await proxy.post()
            record = proxy.observed[-1].record(0.0)
            assert (record.attempts, record.queue_seconds) == (1, 0.0)


async def test_a_record_has_the_time_in_the_queue() -> None:
    async with FakeEngine(answering(http_reply())) as engine, ForwardingFront(engine) as proxy:
        limit_to(proxy, 1)
        lease = proxy.pool.occupy(proxy.pool.backends[0])
        waiting = asyncio.get_running_loop().create_task(proxy.post())
        await until(lambda: proxy.pool.queue.count == 1)
        await asyncio.sleep(0.05)
        lease.close()
        await waiting
        record = proxy.observed[0].record(proxy.pool.clock())
        assert 0.04 < record.queue_seconds < record.seconds


async def test_last_failure_is_reported_if_no_other_backend_is_left() -> None:
    async with FakeEngine(dies_with_the_request) as only, ForwardingFront(only) as proxy:
        reply = await proxy.post()
    assert (status_of(reply), error_of(reply)["code"]) == (502, "backend_disconnected")


async def test_stale_connection_is_replaced_without_blaming_the_backend() -> None:
    async with FakeEngine(closes_when_asked_twice) as engine, ForwardingFront(engine) as proxy:
        replies = [await proxy.post() for _ in range(2)]
        assert [status_of(reply) for reply in replies] == [200, 200]
        assert proxy.pool.backends[0].takes_requests
    assert len(engine.connections) == 2


async def test_request_that_an_engine_held_on_a_kept_connection_counts_as_lost() -> None:
    async def holds_the_second_request(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(http_reply())
        await connection.request()
        await asyncio.sleep(0.4)
        connection.reset()

    async with FakeEngine(holds_the_second_request) as holding, FakeEngine(answering(http_reply(b"other"))) as other:
        async with ForwardingFront(holding, other) as proxy:
            with chosen_first(proxy, 0):
                assert status_of(await proxy.post()) == 200
                reply = await proxy.post()
            assert (status_of(reply), reply.partition(b"\r\n\r\n")[2]) == (200, b"other")
            assert not proxy.pool.backends[0].takes_requests
    assert (len(holding.requests), len(other.requests)) == (2, 1)


async def test_two_engines_that_hold_and_drop_a_request_are_the_last() -> None:
    async def holds_the_second_request(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(http_reply())
        await connection.request()
        await asyncio.sleep(0.4)
        connection.finish()

    async with (
        FakeEngine(holds_the_second_request) as first,
        FakeEngine(holds_the_second_request) as second,
        FakeEngine(holds_the_second_request) as third,
        ForwardingFront(first, second, third) as proxy,
    ):
        engines = (first, second, third)
        for index in range(3):
            with chosen_first(proxy, index):
                assert status_of(await proxy.post()) == 200
        reply = await proxy.post()
        assert (status_of(reply), error_of(reply)["code"]) == (502, "backend_disconnected")
        assert sorted(len(engine.requests) for engine in engines) == [1, 2, 2]


async def test_request_with_side_effects_is_not_resent_after_a_stale_connection() -> None:
    async with FakeEngine(closes_when_asked_twice) as engine, ForwardingFront(engine) as proxy:
        replies = [await proxy.post(path="/v1/files") for _ in range(2)]
    assert [status_of(reply) for reply in replies] == [200, 502]


async def test_two_timeouts_are_504() -> None:
    async def never_answers(connection: EngineConnection) -> None:
        await connection.request()

    async with FakeEngine(never_answers) as silent, FakeEngine(never_answers) as other:
        async with ForwardingFront(silent, other, first_byte_seconds=0.05) as proxy:
            reply = await proxy.post()
            assert all(backend.load.leases == 0 for backend in proxy.pool.backends)
    assert (status_of(reply), error_of(reply)["code"]) == (504, "backend_timeout")
    assert len(silent.requests) + len(other.requests) == 2


async def test_request_without_a_timely_answer_is_retried_on_another_backend() -> None:
    async def never_answers(connection: EngineConnection) -> None:
        await connection.request()

    async with FakeEngine(never_answers) as silent, FakeEngine(answering(http_reply())) as other:
        async with ForwardingFront(silent, other, first_byte_seconds=0.05) as proxy:
            with chosen_first(proxy, 0):
                reply = await proxy.post()
    assert status_of(reply) == 200
    assert (len(silent.requests), len(other.requests)) == (1, 1)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_timeout_without_another_backend_or_with_side_effects_is_504(path: str) -> None:
    async def never_answers(connection: EngineConnection) -> None:
        await connection.request()

    async with FakeEngine(never_answers) as silent, FakeEngine(answering(http_reply())) as other:
        engines = [silent] if path == "/v1/chat/completions" else [silent, other]
        async with ForwardingFront(*engines, first_byte_seconds=0.05) as proxy:
            with chosen_first(proxy, 0):
                reply = await proxy.post(path=path)
    assert (status_of(reply), error_of(reply)["code"]) == (504, "backend_timeout")
    assert not other.requests


async def test_an_invalid_reply_is_502() -> None:
    async with FakeEngine(answering(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post()
    assert (status_of(reply), error_of(reply)["code"]) == (502, "invalid_backend_reply")


@pytest.mark.parametrize(
    ("path", "last_event"),
    [
        ("/v1/chat/completions", b'data: {"error": {'),
        ("/v1/messages", b'event: error\ndata: {"type": "error"'),
        ("/v1/responses", b'event: response.failed\ndata: {"type": "response.failed"'),
    ],
)
async def test_stream_cut_between_events_ends_with_an_error_event(path: str, last_event: bytes) -> None:
    async def dies_between_events(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(STREAM_HEAD, chunk(EVENT), chunk(EVENT))
        connection.finish()

    async with FakeEngine(dies_between_events) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post(path=path)
        assert not proxy.pool.backends[0].takes_requests
        assert proxy.observed[0].outcome is Outcome.BROKEN
    stream = reply.partition(b"\r\n\r\n")[2]
    assert stream.startswith(chunk(EVENT) * 2)
    rest = stream[len(chunk(EVENT)) * 2 :]
    assert last_event in rest
    assert b"[DONE]" not in stream
    assert not stream.endswith(b"0\r\n\r\n")


async def test_stream_cut_inside_an_event_gets_no_error_event() -> None:
    async def dies_inside_an_event(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(STREAM_HEAD, chunk(EVENT), chunk(b'data: {"n": '))
        connection.finish()

    async with FakeEngine(dies_inside_an_event) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post()
    assert reply.partition(b"\r\n\r\n")[2] == chunk(EVENT) + chunk(b'data: {"n": ')


@pytest.mark.parametrize("begun", [False, True], ids=["before the first byte", "in the stream"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/other"])
async def test_disconnect_closes_the_backend_connection(path: str, begun: bool) -> None:
    async def answers_for_ever(connection: EngineConnection) -> None:
        await connection.request()
        if begun:
            connection.send(STREAM_HEAD, chunk(EVENT))

    async with FakeEngine(answers_for_ever) as engine, ForwardingFront(engine) as proxy:
        client = await proxy.connect()
        client.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await until(lambda: bool(engine.requests))
        if begun:
            await until(lambda: proxy.pool.backends[0].connections.activity().has_begun)
        left_at = proxy.pool.clock()
        client.leave()
        await engine.connections[0].ended
        assert engine.connections[0].ended_at - left_at < 1
        await until(lambda: proxy.pool.backends[0].load.leases == 0)
        assert proxy.pool.backends[0].takes_requests
        assert [exchange.outcome for exchange in proxy.observed] == [Outcome.CLIENT_LEFT]
        assert proxy.observed[0].status == (200 if begun else CLIENT_GONE)


async def test_control_endpoints_are_refused_without_a_backend() -> None:
    async with FakeEngine(answering(http_reply())) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post(path="/sleep?level=1")
    assert (status_of(reply), error_of(reply)["code"]) == (403, "path_blocked")
    assert b"BLOCKED_PATHS" in reply
    assert engine.connections == []


async def test_unknown_model_is_404_in_the_format_of_the_path() -> None:
    async with FakeEngine(answering(http_reply())) as engine, ForwardingFront(engine) as proxy:
        openai = await proxy.post(b'{"model": "other"}')
        anthropic = await proxy.post(b'{"model": "other"}', path="/v1/messages")
    assert (status_of(openai), error_of(openai)["code"], error_of(openai)["param"]) == (404, "model_not_found", "model")
    assert (status_of(anthropic), error_of(anthropic)["type"]) == (404, "not_found_error")
    assert engine.connections == []


async def test_engine_without_keep_alive_gets_connection_close() -> None:
    async with FakeEngine(answering(http_reply())) as engine, ForwardingFront(engine) as proxy:
        proxy.pool.backends[0].connections.keep_alive(wanted=False)
        for _ in range(3):
            assert status_of(await proxy.post()) == 200
    assert len(engine.connections) == 3
    assert all(b"\r\nconnection: close\r\n" in request for request in engine.requests)


# --- an engine that says "not here, not now"


@contextmanager
def chosen_first(proxy: ForwardingFront, index: int) -> Iterator[Backend]:
    """Make one backend look less loaded than the others."""
    first = proxy.pool.backends[index]
    leases = [proxy.pool.occupy(other) for other in proxy.pool.backends if other is not first for _ in range(3)]
    yield first
    for lease in leases:
        lease.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_declined_request_is_served_by_another_backend(status: int) -> None:
    async with (
        FakeEngine(answering(http_reply(b"no", status))) as declining,
        FakeEngine(answering(http_reply())) as other,
    ):
        async with ForwardingFront(declining, other) as proxy:
            with chosen_first(proxy, 0):
                reply = await proxy.post()
            assert (status_of(reply), reply.partition(b"\r\n\r\n")[2]) == (200, b"hello")
            assert b"x-backend: " + other.url.encode() in reply
            assert proxy.pool.requests_in_flight == 0
    assert (len(declining.requests), len(other.requests)) == (1, 1)


@pytest.mark.parametrize("status", [400, 401, 404, 501, 504])
async def test_other_errors_are_relayed_at_once(status: int) -> None:
    async with (
        FakeEngine(answering(http_reply(b"no", status))) as failing,
        FakeEngine(answering(http_reply())) as other,
    ):
        async with ForwardingFront(failing, other) as proxy:
            with chosen_first(proxy, 0):
                reply = await proxy.post()
    assert status_of(reply) == status
    assert other.requests == []


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/files", "/v1/audio/voices", "/api/v1/chat"])
async def test_declined_request_with_side_effects_is_not_repeated(path: str) -> None:
    async with FakeEngine(answering(http_reply(b"no", 503))) as declining, FakeEngine(answering(http_reply())) as other:
        async with ForwardingFront(declining, other) as proxy:
            with chosen_first(proxy, 0):
                reply = await proxy.post(path=path)
    assert status_of(reply) == 503
    assert other.requests == []


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("chunked", [False, True])
async def test_declining_reply_is_relayed_byte_for_byte_if_no_other_backend_is_left(status: int, chunked: bool) -> None:
    body = b'{"error": {"message": "\xc3\xbcberlastet"}}'
    engines_reply = http_reply(body, status, b"Retry-After: 1\r\nX-Own: kept\r\n")
    if chunked:
        head = b"HTTP/1.1 %d No\r\nretry-after: 1\r\nx-own: kept\r\ntransfer-encoding: chunked\r\n\r\n" % status
        engines_reply = head + chunk(body[:9]) + chunk(body[9:]) + b"0\r\n\r\n"
    async with FakeEngine(answering(engines_reply)) as only, ForwardingFront(only) as proxy:
        client = await proxy.connect()
        reply = await client.ask(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert (reply.status, reply.body) == (status, body)
        assert (reply.fields["retry-after"], reply.fields["x-own"]) == ("1", "kept")
        await until(lambda: proxy.pool.requests_in_flight == 0)
    assert len(only.requests) == 1


async def test_declining_reply_to_head_has_no_body() -> None:
    async with FakeEngine(answering(b"HTTP/1.1 503 No\r\ncontent-length: 9\r\n\r\n")) as only:
        async with ForwardingFront(only) as proxy:
            reply = await proxy.send(b"HEAD /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert status_of(reply) == 503
    assert reply.endswith(b"\r\n\r\n")


async def test_request_declined_twice_is_not_tried_again() -> None:
    async with (
        FakeEngine(answering(http_reply(b"first", 503))) as first,
        FakeEngine(answering(http_reply(b"second", 503))) as second,
        FakeEngine(answering(http_reply(b"third", 503))) as third,
        ForwardingFront(first, second, third) as proxy,
    ):
        reply = await proxy.post()
    assert status_of(reply) == 503
    assert len(first.requests) + len(second.requests) + len(third.requests) == 2


async def test_error_of_two_backends_is_relayed() -> None:
    async with (
        FakeEngine(answering(http_reply(b"first", 500))) as first,
        FakeEngine(answering(http_reply(b"second", 500))) as second,
        FakeEngine(answering(http_reply())) as third,
        ForwardingFront(first, second, third) as proxy,
    ):
        leases = [proxy.pool.occupy(proxy.pool.backends[2]) for _ in range(3)]
        reply = await proxy.post()
        for lease in leases:
            lease.close()
    assert (status_of(reply), reply.partition(b"\r\n\r\n")[2] in (b"first", b"second")) == (500, True)
    assert (len(first.requests), len(second.requests), len(third.requests)) == (1, 1, 0)


async def never_streams(connection: EngineConnection) -> None:
    await connection.request()
    await connection.ended


async def keeps_a_stream_alive(connection: EngineConnection) -> None:
    await connection.request()
    connection.send(STREAM_HEAD)
    while not connection.ended.done():
        connection.send(chunk(COMMENT))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("script", [never_streams, keeps_a_stream_alive], ids=["no reply", "comments only"])
async def test_stream_whose_first_event_is_late_is_retried_on_another_backend(script: Script) -> None:
    async with FakeEngine(script) as late, FakeEngine(answering(STREAM_REPLY)) as other:
        async with ForwardingFront(late, other) as proxy:
            proxy.forwarder = make_forwarder(proxy.pool, first_token_seconds=0.3)
            with chosen_first(proxy, 0):
                reply = await proxy.post(b'{"model": "m", "stream": true}')
    assert (status_of(reply), EVENT in reply) == (200, True)
    assert (len(late.requests), len(other.requests)) == (1, 1)


async def test_first_event_deadline_does_not_apply_to_later_events_or_other_replies() -> None:
    async def answers_slowly(connection: EngineConnection) -> None:
        is_stream = b"stream" in await connection.request()
        if is_stream:
            connection.send(STREAM_HEAD, chunk(EVENT))
        await asyncio.sleep(0.5)
        connection.send(b"0\r\n\r\n" if is_stream else http_reply())
        connection.finish()

    async with FakeEngine(answers_slowly) as engine, ForwardingFront(engine) as proxy:
        proxy.forwarder = make_forwarder(proxy.pool, first_token_seconds=0.2)
        assert (await proxy.post(b'{"model": "m", "stream": true}')).endswith(b"0\r\n\r\n")
        assert status_of(await proxy.post()) == 200


async def test_engine_that_asks_for_a_pause_gets_it() -> None:
    declines = http_reply(b"no", 503, b"Retry-After: 9\r\n")
    async with FakeEngine(answering(declines)) as declining, FakeEngine(answering(http_reply())) as other:
        async with ForwardingFront(declining, other) as proxy:
            with chosen_first(proxy, 0) as backend:
                assert status_of(await proxy.post()) == 200
                assert backend.health.state is Health.BUSY
                publish(proxy.pool)
                assert [status_of(await proxy.post()) for _ in range(4)] == [200] * 4
    assert (len(declining.requests), len(other.requests)) == (1, 5)


async def test_engine_that_fails_fast_attracts_few_requests() -> None:
    async with FakeEngine(answering(http_reply(b"no", 503))) as failing, FakeEngine(answering(http_reply())) as other:
        async with ForwardingFront(failing, other) as proxy:
            with chosen_first(proxy, 0) as backend:
                for _ in range(60):
                    publish(proxy.pool)  # its state is good all the time
                    await proxy.post()
                assert backend.health.state is Health.SUSPECT
                statuses = [exchange.status for exchange in proxy.observed]
    assert len(failing.requests) == 5
    assert statuses.count(200) >= 57


async def test_fleet_that_declines_everything_gets_few_retries() -> None:
    scripts = [answering(http_reply(b"no", 503)) for _ in range(3)]
    async with FakeEngine(scripts[0]) as first, FakeEngine(scripts[1]) as second, FakeEngine(scripts[2]) as third:
        async with ForwardingFront(first, second, third) as proxy:
            replies = [await proxy.post() for _ in range(50)]
            assert proxy.pool.requests_in_flight == 0
    assert {status_of(reply) for reply in replies} == {503}
    assert len(first.requests) + len(second.requests) + len(third.requests) <= 1.2 * 50 + 3


async def test_declined_request_always_returns_its_retry_budget() -> None:
    async with FakeEngine(answering(http_reply(b"no", 503))) as declining, FakeEngine(answering(http_reply())) as other:
        gone = unused_url()
        async with ForwardingFront(declining, gone, other) as proxy:
            first, second, third = proxy.pool.backends
            for _ in range(8):
                for backend in proxy.pool.backends:
                    proxy.pool.report_success(backend, proxy.pool.clock())
                publish(proxy.pool)
                leases = [proxy.pool.occupy(second), *(proxy.pool.occupy(third) for _ in range(2))]
                assert first.takes_requests
                assert second.takes_requests
                assert status_of(await proxy.post()) in (200, 503)
                for lease in leases:
                    lease.close()
            assert proxy.budget_under_way == 0


async def test_client_error_is_no_evidence_against_the_engine() -> None:
    replies = [http_reply(b"", 500), http_reply(b"", 400), http_reply(b"", 404), http_reply(b"", 429)]
    async with FakeEngine(answering(*replies, *replies, http_reply())) as engine, ForwardingFront(engine) as proxy:
        health = proxy.pool.backends[0].health
        for _ in range(8):
            await proxy.post()
            assert health.is_doubtful
        assert status_of(await proxy.post()) == 200
        assert not health.is_doubtful


# --- event streams that have not sent an event yet


COMMENT = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
HALF_EVENT = b'data: {"n": '
STREAM_REPLY = STREAM_HEAD + chunk(EVENT) + b"0\r\n\r\n"


def streams_and_ends(connection_ends: str, *blocks: bytes) -> Script:
    """Sends the header section of a stream and ``blocks``, and then ends: ``finish``, ``reset`` or not at all."""

    async def script(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(STREAM_HEAD, *blocks)
        await until(lambda: bool(connection.requests))
        await asyncio.sleep(0.05)
        if connection_ends:
            getattr(connection, connection_ends)()

    return script


@pytest.mark.parametrize("end", ["finish", "reset", ""], ids=["closed", "reset", "stalled"])
@pytest.mark.parametrize(
    "begins",
    [b"", chunk(COMMENT), chunk(PING), chunk(COMMENT) + chunk(HALF_EVENT), b"5\r\nda"],
    ids=["nothing", "comment", "ping", "half an event", "half a chunk"],
)
async def test_stream_that_fails_before_its_first_event_is_retried_on_another_backend(begins: bytes, end: str) -> None:
    async with (
        FakeEngine(streams_and_ends(end, begins)) as failing,
        FakeEngine(answering(STREAM_REPLY)) as other,
        ForwardingFront(failing, other, pause_seconds=0.3) as proxy,
    ):
        with chosen_first(proxy, 0):
            reply = await proxy.post()
        assert (status_of(reply), reply.partition(b"\r\n\r\n")[2]) == (200, chunk(EVENT) + b"0\r\n\r\n")
        assert b"x-backend: " + other.url.encode() in reply
        assert proxy.observed[0].outcome is Outcome.COMPLETE


async def test_stream_with_side_effects_that_fails_before_its_first_event_is_502() -> None:
    async with FakeEngine(streams_and_ends("reset")) as failing, FakeEngine(answering(STREAM_REPLY)) as other:
        async with ForwardingFront(failing, other) as proxy:
            with chosen_first(proxy, 0):
                reply = await proxy.post(path="/v1/responses")
    assert (status_of(reply), error_of(reply)["code"]) == (502, "backend_disconnected")
    assert not other.requests


async def test_stream_before_its_first_event_is_retried_once() -> None:
    async with (
        FakeEngine(streams_and_ends("reset")) as first,
        FakeEngine(streams_and_ends("reset")) as second,
        FakeEngine(streams_and_ends("reset")) as third,
        ForwardingFront(first, second, third) as proxy,
    ):
        assert status_of(await proxy.post()) == 502
    assert len(first.requests) + len(second.requests) + len(third.requests) == 2


async def test_stream_without_events_that_ends_properly_is_complete() -> None:
    end = b"0\r\n\r\n"
    async with FakeEngine(answering(STREAM_HEAD + chunk(COMMENT) + end)) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post()
    assert (status_of(reply), reply.partition(b"\r\n\r\n")[2]) == (200, chunk(COMMENT) + end)


async def test_first_byte_of_a_stream_is_its_first_event() -> None:
    async def reads_a_prompt(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(STREAM_HEAD, chunk(COMMENT))
        await asyncio.sleep(0.3)
        connection.send(chunk(EVENT), b"0\r\n\r\n")

    async with FakeEngine(reads_a_prompt) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post()
        assert reply.partition(b"\r\n\r\n")[2] == chunk(COMMENT) + chunk(EVENT) + b"0\r\n\r\n"
        [request] = proxy.observed
        assert isinstance(request, ProxiedRequest)
        assert (request.record(proxy.pool.clock()).first_byte_seconds or 0) > 0.25


@pytest.mark.parametrize("fails", [False, True], ids=["goes on", "fails over"])
async def test_keep_alives_reach_a_client_after_a_long_wait_and_the_stream_can_still_be_retried(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_relay, "_SILENT_SECONDS", 0.1)

    async def keeps_alive(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(STREAM_HEAD, chunk(COMMENT))
        await asyncio.sleep(0.2)
        connection.send(chunk(COMMENT), b"3\r\n: k")
        await connection.cue.wait()
        if fails:
            connection.reset()
        else:
            connection.send(b"\r\n2\r\n\n\n\r\n", chunk(EVENT), b"0\r\n\r\n")

    async with FakeEngine(keeps_alive) as first, FakeEngine(answering(STREAM_REPLY)) as other:
        async with ForwardingFront(first, other) as proxy:
            with chosen_first(proxy, 0):
                client = await proxy.connect()
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
                client.send(head + b"\r\n{}")
                await client.head()
                assert await client.read(len(chunk(COMMENT * 2))) == chunk(COMMENT * 2)
                first.connections[-1].cue.set()
                rest = await client.rest()
    expected = [EVENT] if fails else [b": k\n\n" + EVENT]
    assert rest == b"".join(map(chunk, expected)) + b"0\r\n\r\n"
    assert len(other.requests) == fails


async def test_streams_without_an_event_are_taken_back_from_a_stuck_backend() -> None:
    async with FakeEngine(streams_and_ends("")) as stuck, FakeEngine(answering(STREAM_REPLY)) as other:
        async with ForwardingFront(stuck, other) as proxy:
            with chosen_first(proxy, 0) as backend:
                reply = asyncio.get_running_loop().create_task(proxy.post())
                await until(lambda: backend.connections.activity().has_begun)
                proxy.pool.report_refused_connection(backend)
                assert status_of(await reply) == 200
    assert len(other.requests) == 1


# --- requests that wait for their first byte


async def keeps_waiting(connection: EngineConnection) -> None:
    await connection.request()


async def streams_and_stops(connection: EngineConnection) -> None:
    await connection.request()
    connection.send(STREAM_HEAD, chunk(EVENT))
    await connection.cue.wait()
    connection.send(chunk(EVENT), b"0\r\n\r\n")


def get_stuck(proxy: ForwardingFront, backend: Backend) -> None:
    proxy.pool.report_timeout(backend)
    proxy.pool.report_timeout(backend)
    assert backend.health.is_stuck


def go_down(proxy: ForwardingFront, backend: Backend) -> None:
    state = replace(READY, ready=False, live=False, reason="gone")
    proxy.pool.publish(backend, state, own_at_poll=0, asked_at=proxy.pool.clock())
    assert backend.health.state is Health.DOWN


@pytest.mark.parametrize("ends", [get_stuck, go_down])
async def test_request_on_a_stuck_backend_is_served_by_another(ends: object) -> None:
    assert callable(ends)
    async with FakeEngine(keeps_waiting) as stuck, FakeEngine(answering(http_reply())) as other:
        async with ForwardingFront(stuck, other) as proxy, asyncio.TaskGroup() as clients:
            with chosen_first(proxy, 0) as backend:
                replies = [clients.create_task(proxy.post()) for _ in range(3)]
                await until(lambda: len(stuck.requests) == 3)
            ends(proxy, backend)
            assert [status_of(await reply) for reply in replies] == [200] * 3
            for connection in stuck.connections:
                await connection.ended
            assert (backend.load.leases, len(other.requests)) == (0, 3)


async def test_stream_that_has_begun_is_not_taken_back() -> None:
    async with FakeEngine(streams_and_stops) as stuck, FakeEngine(answering(http_reply())) as other:
        async with ForwardingFront(stuck, other) as proxy, asyncio.TaskGroup() as clients:
            with chosen_first(proxy, 0) as backend:
                reply = clients.create_task(proxy.post())
                await until(lambda: backend.connections.activity().has_begun)
            get_stuck(proxy, backend)
            stuck.connections[0].cue.set()
            stream = (await reply).partition(b"\r\n\r\n")[2]
    assert stream == chunk(EVENT) * 2 + b"0\r\n\r\n"
    assert other.requests == []


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/files"])
async def test_request_with_side_effects_is_not_taken_back(path: str) -> None:
    async with FakeEngine(answers_on_cue) as stuck, FakeEngine(answering(http_reply())) as other:
        async with ForwardingFront(stuck, other) as proxy, asyncio.TaskGroup() as clients:
            with chosen_first(proxy, 0) as backend:
                reply = clients.create_task(proxy.post(path=path))
                await until(lambda: stuck.requests)
            get_stuck(proxy, backend)
            stuck.connections[0].cue.set()
            assert status_of(await reply) == 200
    assert other.requests == []


async def answers_on_cue(connection: EngineConnection) -> None:
    await connection.request()
    await connection.cue.wait()
    connection.send(http_reply())


async def test_request_is_not_taken_back_if_no_other_backend_is_left() -> None:
    async with FakeEngine(answers_on_cue) as only, ForwardingFront(only) as proxy, asyncio.TaskGroup() as clients:
        reply = clients.create_task(proxy.post())
        await until(lambda: only.requests)
        get_stuck(proxy, proxy.pool.backends[0])
        only.connections[0].cue.set()
        assert status_of(await reply) == 200


async def test_request_is_taken_back_at_most_once() -> None:
    scripts: list[Script] = [keeps_waiting, answers_on_cue]
    async with FakeEngine(scripts[0]) as first, FakeEngine(scripts[1]) as second:
        async with FakeEngine(answering(http_reply())) as third, ForwardingFront(first, second, third) as proxy:
            async with asyncio.TaskGroup() as clients:
                with chosen_first(proxy, 0) as backend:
                    reply = clients.create_task(proxy.post())
                    await until(lambda: first.requests)
                    with chosen_first(proxy, 1) as next_one:
                        get_stuck(proxy, backend)
                        await until(lambda: second.requests)
                get_stuck(proxy, next_one)
                second.connections[0].cue.set()
                assert status_of(await reply) == 200
    assert third.requests == []


# --- requests that wait for a place


class SlowEngine(FakeEngine):
    """Answers one request each time that it is told to."""

    def __init__(self) -> None:
        self._told = asyncio.Semaphore(0)
        super().__init__(self._answer)

    def answer_one(self) -> None:
        self._told.release()

    async def _answer(self, connection: EngineConnection) -> None:
        while True:
            await connection.request()
            await self._told.acquire()
            connection.send(http_reply())


def limit_to(proxy: ForwardingFront, capacity: int) -> None:
    publish(proxy.pool, replace(READY, capacity=capacity))


async def test_request_waits_for_a_slot_and_is_served() -> None:
    async with SlowEngine() as engine, ForwardingFront(engine) as proxy:
        limit_to(proxy, 1)
        async with asyncio.TaskGroup() as clients:
            replies = [clients.create_task(proxy.post()) for _ in range(3)]
            for served in range(3):
                await until(lambda served=served: len(engine.requests) == served + 1)  # type: ignore[misc]
                await until(lambda served=served: proxy.pool.queue.count == 2 - served)  # type: ignore[misc]
                assert proxy.pool.requests_in_flight == 1
                engine.answer_one()
        assert [status_of(reply.result()) for reply in replies] == [200] * 3
        assert (proxy.pool.queue.count, proxy.pool.requests_in_flight) == (0, 0)


async def test_request_whose_client_leaves_the_queue_reaches_no_engine() -> None:
    async with SlowEngine() as engine, ForwardingFront(engine) as proxy:
        limit_to(proxy, 1)
        async with asyncio.TaskGroup() as clients:
            first = clients.create_task(proxy.post(b'{"first": 1}'))
            await until(lambda: engine.requests)
            leaving = await proxy.connect()
            leaving.send(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            await until(lambda: proxy.pool.queue.count)
            leaving.leave()
            await until(lambda: not proxy.pool.queue.count)
            assert proxy.observed[0].outcome is Outcome.CLIENT_LEFT
            engine.answer_one()
            assert status_of(await first) == 200
    assert len(engine.requests) == 1


async def test_full_queue_is_429_at_once() -> None:
    async with SlowEngine() as engine:
        async with ForwardingFront(engine, queue=QueueLimits(requests=1, seconds=30)) as proxy:
            limit_to(proxy, 1)
            async with asyncio.TaskGroup() as clients:
                replies = [clients.create_task(proxy.post()) for _ in range(2)]
                await until(lambda: engine.requests and proxy.pool.queue.count)
                refused = await proxy.post()
                assert (status_of(refused), error_of(refused)["code"]) == (429, "queue_full")
                assert b"\r\nretry-after: 30\r\n" in refused
                engine.answer_one()
                await until(lambda: len(engine.requests) == 2)
                engine.answer_one()
            assert [status_of(reply.result()) for reply in replies] == [200, 200]


async def test_request_that_waited_too_long_in_the_queue_is_503() -> None:
    async with SlowEngine() as engine:
        async with ForwardingFront(engine, queue=QueueLimits(requests=9, seconds=0.02)) as proxy:
            limit_to(proxy, 1)
            async with asyncio.TaskGroup() as clients:
                served = clients.create_task(proxy.post())
                await until(lambda: engine.requests)
                late = await proxy.post()
                assert (status_of(late), error_of(late)["code"]) == (503, "queue_timeout")
                engine.answer_one()
            assert status_of(served.result()) == 200
    assert len(engine.requests) == 1


async def test_request_with_a_higher_stated_priority_is_served_first() -> None:
    async with SlowEngine() as engine, ForwardingFront(engine) as proxy:
        limit_to(proxy, 1)
        async with asyncio.TaskGroup() as clients:
            clients.create_task(proxy.post(b"{}"))
            await until(lambda: engine.requests)
            for place, priority in enumerate((-1, 0, 9)):
                request = (
                    "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    f"X-Priority: {priority}\r\nContent-Length: 2\r\n\r\n{{}}"
                )
                clients.create_task(proxy.send(request.encode()))
                await until(lambda place=place: proxy.pool.queue.count == place + 1)  # type: ignore[misc]
            for served in range(4):
                await until(lambda served=served: len(engine.requests) == served + 1)  # type: ignore[misc]
                engine.answer_one()
    stated = [request.partition(b"X-Priority: ")[2].partition(b"\r\n")[0] for request in engine.requests]
    assert stated == [b"", b"9", b"0", b"-1"]


async def test_declined_request_is_served_before_waiting_ones() -> None:
    async def declines_on_cue(connection: EngineConnection) -> None:
        await connection.request()
        await connection.cue.wait()
        connection.send(http_reply(b"no", 503))
        await connection.request()

    async with FakeEngine(declines_on_cue) as declining, SlowEngine() as other:
        async with ForwardingFront(declining, other) as proxy:
            limit_to(proxy, 1)
            first = await proxy.connect()
            with chosen_first(proxy, 0):
                declined = await proxy.connect()
                declined.send(request_of("declined"))
                await until(lambda: declining.requests)
            first.send(request_of("first"))
            await until(lambda: other.requests)
            waiting = [await proxy.connect() for _ in range(2)]
            for place, client in enumerate(waiting):
                client.send(request_of("waiting"))
                await until(lambda place=place: proxy.pool.queue.count == place + 1)  # type: ignore[misc]
            declining.connections[0].cue.set()
            await until(lambda: len(declining.requests) == 2)  # the first that waits has got the place
            await until(lambda: proxy.pool.queue.count == 2)
            other.answer_one()
            await until(lambda: len(other.requests) == 2)
            assert b"declined" in other.requests[1]


async def test_request_that_waits_for_another_engine_blocks_no_other() -> None:
    async with FakeEngine(answering(http_reply(b"no", 503), http_reply())) as declining, SlowEngine() as other:
        async with ForwardingFront(declining, other) as proxy:
            limit_to(proxy, 1)
            first, declined, usual = [await proxy.connect() for _ in range(3)]
            with chosen_first(proxy, 1):
                first.send(request_of("first"))
                await until(lambda: other.requests)
            declined.send(request_of("declined"))
            await until(lambda: proxy.pool.queue.count)
            assert (await usual.ask(request_of("usual"))).status == 200
            assert proxy.pool.queue.count == 1
            other.answer_one()
            other.answer_one()
            assert (await declined.reply()).status == 200


def request_of(name: str) -> bytes:
    return f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nX-Name: {name}\r\nContent-Length: 2\r\n\r\n{{}}".encode()


async def test_client_that_does_not_read_is_no_evidence_against_its_backend() -> None:
    async def floods(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(STREAM_HEAD, chunk(b"x" * 60_000) * 400)

    async with FakeEngine(floods) as engine, ForwardingFront(engine) as proxy:
        client = await proxy.connect()
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        connections = proxy.pool.backends[0].connections
        await until(lambda: bool(engine.requests))
        await until(lambda: connections.activity().last_byte_at > 0)
        await until(lambda: connections.activity().waiting_since is None)
        while connections.activity().waiting_since is None:
            await client.some()


async def closes_at_once(connection: EngineConnection) -> None:
    connection.finish()


async def speaks_first(connection: EngineConnection) -> None:
    connection.send(b"SSH-2.0-OpenSSH_9.2\r\n")


@pytest.mark.parametrize(
    ("script", "code"), [(closes_at_once, "backend_disconnected"), (speaks_first, "invalid_backend_reply")]
)
async def test_request_on_a_connection_that_has_ended_is_a_failure_of_its_backend(
    monkeypatch: pytest.MonkeyPatch, script: Script, code: str
) -> None:
    async with FakeEngine(script) as engine, ForwardingFront(engine) as proxy:
        connections = proxy.pool.backends[0].connections
        connect = connections.connect

        async def connect_and_wait() -> BackendConnection:
            connection = await connect()
            while not connection.is_stale():  # noqa: ASYNC110 - the event has no other sign
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.01)  # the event loop reads what the system call has seen
            return connection

        monkeypatch.setattr(connections, "connect", connect_and_wait)
        reply = await proxy.post()
    assert (status_of(reply), error_of(reply)["code"]) == (502, code)


async def test_reply_begun_in_the_queue_names_no_backend_that_declined_it() -> None:
    async with (
        FakeEngine(answering(http_reply(b"", 503))) as declining,
        FakeEngine(answering(STREAM_HEAD + chunk(EVENT) + b"0\r\n\r\n")) as full,
        ForwardingFront(declining, full) as proxy,
    ):
        place = proxy.pool.try_lease(Requirements("m"), [proxy.pool.backends[0]])
        assert place is not None
        proxy.pool.backends[1].load.limit = 1
        body = b'{"model": "m", "stream": true}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Queue-Updates: true\r\n"
        client = await proxy.connect()
        client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        status, _, fields = await client.head()
        place.close()
        rest = await client.rest()
    assert (status, len(declining.requests)) == (200, 1)
    assert "x-backend" not in fields
    assert EVENT in rest
