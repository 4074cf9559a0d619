"""Requests of Ollama's clients, over real sockets."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from support.fakes.engine import FakeEngine, answering, http_reply
from support.pools import READY, ForwardingFront, publish
from unit.dispatch.test_forwarder import chosen_first, error_of, status_of

PATHS = ["/api/tags", "/api/version", "/api/chat", "/api/generate", "/api/embed", "/api/show", "/api"]
MISSING = [
    http_reply(b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}', 404),
    http_reply(b'{"detail":"Not Found"}', 404),
    http_reply(b'{"detail":"Method Not Allowed"}', 405),
    http_reply(b"", 501),
    b"HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3\r\n404\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("path", PATHS)
async def test_an_api_that_no_engine_serves_is_explained(path: str) -> None:
    async with FakeEngine(answering(MISSING[0])) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post(path=path)
    assert status_of(reply) == 404
    message = str(error_of(reply)["message"])
    assert "inference-engine-proxy-server" in message
    assert "/v1" in message
    assert b"x-backend" not in reply


@pytest.mark.parametrize("missing", MISSING)
async def test_every_way_to_say_that_a_path_is_missing_is_explained(missing: bytes) -> None:
    async with FakeEngine(answering(missing)) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post(path="/api/chat")
    assert (status_of(reply), error_of(reply)["code"]) == (404, "no_ollama_api")


@pytest.mark.parametrize(
    "answer",
    [
        http_reply(b'{"models": []}'),
        http_reply(b'{"error":"model \'x\' not found, try pulling it first"}', 404),
        http_reply(b'{"error":"bad"}', 400),
        http_reply(b"x" * 50_000, 404),
    ],
)
async def test_the_reply_of_an_engine_that_serves_the_api_is_relayed(answer: bytes) -> None:
    async with FakeEngine(answering(answer)) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post(path="/api/chat")
    assert (status_of(reply), reply.partition(b"\r\n\r\n")[2]) == (status_of(answer), answer.partition(b"\r\n\r\n")[2])
    assert b"x-backend" in reply


async def test_a_stream_of_an_engine_that_serves_the_api_is_relayed() -> None:
    lines = b'{"message":{"content":"a"},"done":false}\n{"done":true}\n'
    stream = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(lines), lines)
    async with FakeEngine(answering(stream)) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post(path="/api/chat")
    assert lines in reply


async def test_a_declined_request_is_repeated_on_another_engine_that_serves_the_api() -> None:
    served = http_reply(b'{"done":true}')
    async with FakeEngine(answering(http_reply(b"no", 503))) as declining, FakeEngine(answering(served)) as other:
        async with ForwardingFront(declining, other) as proxy:
            with chosen_first(proxy, 0):
                reply = await proxy.post(path="/api/chat")
    assert status_of(reply) == 200


async def test_a_model_that_no_engine_lists_is_explained_too() -> None:
    async with FakeEngine(answering(MISSING[0])) as engine, ForwardingFront(engine) as proxy:
        publish(proxy.pool, replace(READY, models=({"id": "m"},)))
        reply = await proxy.post(json.dumps({"model": "llama3:latest"}).encode(), path="/api/chat")
    error = error_of(reply)
    assert (status_of(reply), error["code"]) == (404, "model_not_found")
    assert "/v1" in str(error["message"])


@pytest.mark.parametrize(
    "path", ["/apix", "/api/v1/generate", "/api/v0/chat/completions", "/api/extra/tokencount", "/api/latest/generate"]
)
async def test_other_missing_paths_are_relayed_unchanged(path: str) -> None:
    async with FakeEngine(answering(MISSING[0])) as engine, ForwardingFront(engine) as proxy:
        reply = await proxy.post(path=path)
    assert reply.endswith(b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}')
