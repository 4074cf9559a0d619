from __future__ import annotations

import re

import pytest

from inference_engine_proxy_server.dispatch.timed_request import TimedRequest
from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.wire.request_head import parse_request_head
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.live_proxy import live_proxy
from unit.wire.test_exchange import EVENTS, LIMITS, Connection


@pytest.fixture
def request_and_client() -> tuple[TimedRequest, Connection]:
    """A request that was complete at 1.0, and whose clock counts its readings."""
    connection = Connection()
    head = parse_request_head(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n", LIMITS)
    request = TimedRequest(connection, head, b"", "id-1", "1.2.3.4:5")
    request.backend, request.requirements, request.attempts = "http://a", Requirements(), 1
    return request, connection


def timing_in(connection: Connection) -> bytes | None:
    found = re.search(rb"\r\nserver-timing: ([^\r]*)\r\n", connection.blocks[0])
    return None if found is None else found[1]


def test_a_reply_says_how_long_its_parts_took(request_and_client: tuple[TimedRequest, Connection]) -> None:
    request, connection = request_and_client
    request.queue_seconds = 0.25
    request.begin(200, b" OK", EVENTS, None)  # at 2.0
    request.write(b"data: 1\n\n")
    assert timing_in(connection) == b"queue;dur=250.0, backend;dur=750.0"


def test_a_whole_reply_says_it_too(request_and_client: tuple[TimedRequest, Connection]) -> None:
    request, connection = request_and_client
    request.attempts = 3
    request.write_whole(200, b" OK", b"", b"hello")
    found = timing_in(connection)
    assert found is not None
    assert re.fullmatch(rb'queue;dur=0\.0, backend;dur=\d+\.0, attempts;desc="3"', found)


def test_a_reply_of_the_proxy_has_no_timing(request_and_client: tuple[TimedRequest, Connection]) -> None:
    request, connection = request_and_client
    request.fail(CapacityError("Full."))
    assert timing_in(connection) is None


def test_a_comment_ahead_of_the_reply_has_no_timing(request_and_client: tuple[TimedRequest, Connection]) -> None:
    request, connection = request_and_client
    request.send_comment(b": heartbeat\n\n")
    assert timing_in(connection) is None


@pytest.mark.parametrize("is_on", [True, False])
async def test_the_setting_turns_it_on(is_on: bool) -> None:
    async with Engine(answers_with(http_reply(b"{}"))) as engine, live_proxy(engine.url, server_timing=is_on) as proxy:
        reply = await proxy.http.post("/v1/chat/completions", json={})
        assert ("server-timing" in reply.headers) is is_on
        assert "server-timing" not in (await proxy.http.get("/health")).headers
