"""What becomes of a request, whatever its backends do; over real sockets, on scripted engines."""

from __future__ import annotations

import json

import pytest

from core.conftest import ForwardingFront, publish
from fakes.engine import EngineConnection, FakeEngine, answering, http_reply, refusing_port
from fakes.front import until
from inference_engine_proxy_server.core.backend_pool import Lease
from inference_engine_proxy_server.wire.client_connection import CLIENT_GONE
from inference_engine_proxy_server.wire.exchange import Outcome

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


async def test_a_reply_comes_back_byte_for_byte_and_says_who_gave_it() -> None:
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


async def test_the_engine_gets_the_request_as_sent_with_its_own_host() -> None:
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


async def test_a_refused_connection_moves_the_request_and_takes_the_backend_out() -> None:
    async with FakeEngine(answering(http_reply())) as alive:
        async with ForwardingFront(f"http://127.0.0.1:{refusing_port()}", alive) as proxy:
            replies = [await proxy.post(path="/v1/responses") for _ in range(16)]
            assert {status_of(reply) for reply in replies} == {200}
            dead, other = proxy.pool.backends
            assert (dead.takes_requests, dead.recheck.is_set(), dead.leases) == (False, True, 0)
            assert (other.takes_requests, other.leases) == (True, 0)


async def test_nobody_reachable_is_503_with_retry_after() -> None:
    port = refusing_port()
    async with ForwardingFront(f"http://127.0.0.1:{port}") as proxy:
        reply = await proxy.post()
    assert status_of(reply) == 503
    assert b"\r\nretry-after: 3\r\n" in reply
    assert error_of(reply)["code"] == "no_backend_available"
    assert str(port).encode() not in reply.partition(b"\r\n\r\n")[2]


async def test_a_backend_that_dies_with_a_repeatable_request_costs_nothing() -> None:
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


async def test_a_request_that_may_have_had_an_effect_is_not_repeated() -> None:
    async with FakeEngine(dies_with_the_request) as first, FakeEngine(dies_with_the_request) as second:
        async with ForwardingFront(first, second) as proxy:
            reply = await proxy.post(path="/v1/responses")
    assert status_of(reply) == 502
    assert error_of(reply)["code"] == "backend_disconnected"
    assert len(first.requests) + len(second.requests) == 1


async def test_a_request_that_kills_engines_kills_two_at_most() -> None:
    async with (
        FakeEngine(dies_with_the_request) as first,
        FakeEngine(dies_with_the_request) as second,
        FakeEngine(dies_with_the_request) as third,
        ForwardingFront(first, second, third) as proxy,
    ):
        reply = await proxy.post()
    assert status_of(reply) == 502
    assert len(first.requests) + len(second.requests) + len(third.requests) == 2


async def test_a_request_that_kills_engines_on_kept_connections_kills_two_at_most() -> None:
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
                    proxy.pool.report_failure(other, "not yet")
                assert status_of(await proxy.post()) == 200
                publish(proxy.pool)
                leases = [Lease(other) for other in proxy.pool.backends[1:]]  # so that the first is chosen first
                assert status_of(await proxy.post()) == 502
                for lease in leases:
                    lease.close()
    assert (len(first.requests), len(second.requests) + len(third.requests)) == (2, 1)


async def test_an_error_of_our_own_names_no_backend() -> None:
    async with FakeEngine(dies_with_the_request) as only, ForwardingFront(only) as proxy:
        reply = await proxy.post()
        assert b"x-backend" not in reply
        assert proxy.observed[0].backend is None


async def test_the_last_failure_is_told_when_there_is_nobody_else() -> None:
    async with FakeEngine(dies_with_the_request) as only, ForwardingFront(only) as proxy:
        reply = await proxy.post()
    assert (status_of(reply), error_of(reply)["code"]) == (502, "backend_disconnected")


async def test_a_stale_connection_is_replaced_without_blaming_the_backend() -> None:
    async with FakeEngine(closes_when_asked_twice) as engine, ForwardingFront(engine) as proxy:
        replies = [await proxy.post() for _ in range(2)]
        assert [status_of(reply) for reply in replies] == [200, 200]
        assert proxy.pool.backends[0].takes_requests
    assert len(engine.connections) == 2


async def test_a_stale_connection_is_not_replaced_for_a_request_with_effects() -> None:
    async with FakeEngine(closes_when_asked_twice) as engine, ForwardingFront(engine) as proxy:
        replies = [await proxy.post(path="/v1/files") for _ in range(2)]
    assert [status_of(reply) for reply in replies] == [200, 502]


async def test_a_timeout_is_504_and_not_repeated() -> None:
    async def never_answers(connection: EngineConnection) -> None:
        await connection.request()

    async with FakeEngine(never_answers) as silent, FakeEngine(never_answers) as other:
        async with ForwardingFront(silent, other, reply_seconds=0.05) as proxy:
            reply = await proxy.post()
            assert all(backend.leases == 0 for backend in proxy.pool.backends)
    assert (status_of(reply), error_of(reply)["code"]) == (504, "backend_timeout")
    assert len(silent.requests) + len(other.requests) == 1


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
async def test_a_stream_cut_between_events_ends_with_one_that_says_so(path: str, last_event: bytes) -> None:
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


async def test_a_stream_cut_inside_an_event_just_ends() -> None:
    async def dies_inside_an_event(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(STREAM_HEAD, chunk(EVENT), chunk(b'data: {"n": '))
        connection.finish()

    async with FakeEngine(dies_inside_an_event) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post()
    assert reply.partition(b"\r\n\r\n")[2] == chunk(EVENT) + chunk(b'data: {"n": ')


@pytest.mark.parametrize("begun", [False, True], ids=["before the first byte", "in the stream"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/other"])
async def test_a_client_that_leaves_closes_the_backends_connection(path: str, begun: bool) -> None:
    async def answers_for_ever(connection: EngineConnection) -> None:
        await connection.request()
        if begun:
            connection.send(STREAM_HEAD, chunk(EVENT))

    async with FakeEngine(answers_for_ever) as engine, ForwardingFront(engine) as proxy:
        client = await proxy.connect()
        client.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await until(lambda: bool(engine.requests))
        if begun:
            await until(lambda: proxy.pool.backends[0].connections.last_byte_at() > 0)
        left_at = proxy.pool.clock()
        client.leave()
        await engine.connections[0].ended
        assert engine.connections[0].ended_at - left_at < 1
        await until(lambda: proxy.pool.backends[0].leases == 0)
        assert proxy.pool.backends[0].takes_requests
        assert [exchange.outcome for exchange in proxy.observed] == [Outcome.CLIENT_LEFT]
        assert proxy.observed[0].status == (200 if begun else CLIENT_GONE)


async def test_control_endpoints_are_refused_without_asking_anybody() -> None:
    async with FakeEngine(answering(http_reply())) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post(path="/sleep?level=1")
    assert (status_of(reply), error_of(reply)["code"]) == (403, "path_blocked")
    assert b"BLOCKED_PATHS" in reply
    assert engine.connections == []


async def test_an_unknown_model_is_404_in_the_paths_dialect() -> None:
    async with FakeEngine(answering(http_reply())) as engine, ForwardingFront(engine) as proxy:
        openai = await proxy.post(b'{"model": "other"}')
        anthropic = await proxy.post(b'{"model": "other"}', path="/v1/messages")
    assert (status_of(openai), error_of(openai)["code"], error_of(openai)["param"]) == (404, "model_not_found", "model")
    assert (status_of(anthropic), error_of(anthropic)["type"]) == (404, "not_found_error")
    assert engine.connections == []


async def test_an_engine_without_keep_alive_is_told_to_close() -> None:
    async with FakeEngine(answering(http_reply())) as engine, ForwardingFront(engine) as proxy:
        proxy.pool.backends[0].connections.keep_alive(wanted=False)
        for _ in range(3):
            assert status_of(await proxy.post()) == 200
    assert len(engine.connections) == 3
    assert all(b"\r\nconnection: close\r\n" in request for request in engine.requests)
