from __future__ import annotations

import pytest

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.errors import BackendBroke, CapacityError, ClientError, ProxyError
from inference_engine_proxy_server.requests.content import PromptContent, read_content
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.request_head import parse_request_head
from unit.wire.test_exchange import LIMITS, Connection

POST = b"POST /v1/chat/completions HTTP/1.1"
OPTIONS = b"OPTIONS /v1/chat/completions HTTP/1.1"
PREFLIGHT = b"Origin: http://page\r\nAccess-Control-Request-Method: POST\r\n"


def request_for(line: bytes = POST, fields: bytes = b"", body: bytes = b"") -> tuple[ProxiedRequest, Connection]:
    connection = Connection()
    head = parse_request_head(line + b"\r\nHost: a\r\n" + fields, LIMITS)
    return ProxiedRequest(connection, head, body, "id-1", "1.2.3.4:5"), connection


def test_a_preflight_that_no_backend_can_answer_is_passed() -> None:
    request, connection = request_for(OPTIONS, PREFLIGHT)
    request.fail(CapacityError("Full.", retry_after_seconds=3))
    status, _date, *fields = connection.blocks[0].split(b"\r\n")
    assert status == b"HTTP/1.1 204 No Content"
    assert fields == [
        b"access-control-allow-origin: *",
        b"access-control-allow-methods: *",
        b"access-control-allow-headers: authorization, *",
        b"x-request-id: id-1",
        b"",
        b"",
    ]


@pytest.mark.parametrize(
    ("line", "fields", "error"),
    [
        (OPTIONS, b"Origin: http://page\r\n", CapacityError("m")),
        (POST, PREFLIGHT, CapacityError("m")),
        (OPTIONS, PREFLIGHT, ClientError("m", status=403)),
    ],
    ids=["no-preflight", "another-method", "refused"],
)
def test_any_other_failed_request_gets_its_error(line: bytes, fields: bytes, error: ProxyError) -> None:
    request, _ = request_for(line, fields)
    request.fail(error)
    assert request.status == error.status


def test_a_request_that_fails_before_its_reply_names_no_backend() -> None:
    request, connection = request_for()
    request.backend, request.backend_fields = "http://a", b"x-backend: http://a\r\n"
    request.common_fields = b"x-ratelimit-limit-requests: 1\r\n"
    request.fail(BackendBroke("Gone."))
    assert request.record(9.0).backend is None
    assert b"x-backend" not in connection.blocks[0]
    assert b"x-ratelimit-limit-requests: 1\r\n" in connection.blocks[0]


def test_a_record_has_the_times_since_the_request_was_complete() -> None:
    request, _ = request_for()  # the connection's clock counts its readings: the request is complete at 1.0
    request.model, request.backend = "m", "http://a"
    request.respond(200, b"", b"hello")
    record = request.record(9.0)
    assert (record.first_byte_seconds, record.seconds) == (1.0, 8.0)
    assert (record.status, record.outcome) == (200, Outcome.COMPLETE)
    assert (record.client, record.method, record.path) == ("1.2.3.4:5", "POST", "/v1/chat/completions")
    assert (record.backend, record.model, record.request_id) == ("http://a", "m", "id-1")
    assert record.sent_bytes == request.sent_bytes > 5


def test_a_record_without_a_reply_has_no_first_byte() -> None:
    request, _ = request_for()
    request.client_left()
    record = request.record(3.0)
    assert (record.first_byte_seconds, record.outcome) == (None, Outcome.CLIENT_LEFT)


STREAMED = b'{"stream": true}'


@pytest.mark.parametrize(
    ("line", "fields", "body", "expected"),
    [
        (POST, b"", STREAMED, True),
        (POST, b"Accept: application/json\r\n", STREAMED, True),
        (POST, b"Origin: http://a\r\n", STREAMED, True),
        (POST, b"Origin: http://page\r\n", STREAMED, False),
        (POST, b"", b'{"stream": false}', False),
        (POST, b"", b"", False),
        (b"GET /v1/chat/completions HTTP/1.1", b"", STREAMED, False),
        (b"POST /api/chat HTTP/1.1", b"", STREAMED, False),
    ],
)
def test_comments_are_for_clients_that_ask_for_events_and_may_read_them(
    line: bytes, fields: bytes, body: bytes, expected: bool
) -> None:
    request, _ = request_for(line, fields, body)
    assert request.takes_comments is expected


@pytest.mark.parametrize("has_new_limit", [True, False])
@pytest.mark.parametrize("is_read_before", [True, False])
def test_a_rewritten_request_has_the_content_that_is_sent(is_read_before: bool, has_new_limit: bool) -> None:
    request, _ = request_for()
    request.body = b'{"model": "alias", "stream": true, "max_tokens": 9}'
    if is_read_before:
        assert request.content.model == "alias"
    sent = b'{"model": "m", "stream": true, "max_tokens": %d}' % (5 if has_new_limit else 9)
    request.rewrite(request.head, sent, "m", has_new_limit=has_new_limit)
    assert (request.model, request.body) == ("m", sent)
    content = request.content
    assert (content.model, content.is_streamed, content.answer_tokens) == ("m", True, 5 if has_new_limit else 9)


def test_a_record_says_why_the_request_ended() -> None:
    complete, _ = request_for()
    complete.respond(200, b"", b"hello")
    rejected, _ = request_for()
    rejected.respond(404, b"", b"")
    failed, _ = request_for()
    failed.fail(CapacityError("Full.", code="queue_timeout"))
    broken, _ = request_for()
    broken.begin(200, b"", b"content-type: text/event-stream\r\n", None)
    broken.write(b"data: 1\n\n")
    broken.fail(BackendBroke("Gone."))
    left, _ = request_for()
    left.client_left()
    left.fail(BackendBroke("Gone."))
    reasons = [one.record(9.0).termination for one in (complete, rejected, failed, broken, left)]
    assert reasons == ["complete", "error_status", "queue_timeout", "backend_disconnected", "client_left"]


@pytest.mark.parametrize(
    ("fields", "length", "expected"),
    [
        (b"content-type: text/event-stream\r\n", None, True),
        (b"content-type: text/event-stream\r\ncontent-encoding: gzip\r\n", None, False),
        (b"content-type: text/event-stream\r\n", 3, False),
        (b"content-type: application/json\r\n", None, False),
    ],
)
def test_a_record_says_whether_the_reply_was_a_stream(fields: bytes, length: int | None, expected: bool) -> None:
    request, _ = request_for()
    request.backend = "http://a"
    request.begin(200, b"", fields, length)
    request.write(b"abc")
    request.end()
    assert request.record(9.0).is_stream is expected


def test_content_that_was_read_with_the_prompt_is_not_read_again() -> None:
    request, _ = request_for()
    request.body = b'{"model": "m", "messages": [{"role": "user"}]}'
    found = request.read_with_prompt()
    assert isinstance(found, PromptContent)
    assert request.content is request.read_with_prompt() is found


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": "m", "messages": 1}'])
def test_content_without_a_readable_prompt_is_the_usual_content(body: bytes) -> None:
    request, _ = request_for()
    request.body = body
    assert request.read_with_prompt() == read_content(request.head.target, body, request.head.passed_on)


def test_a_rewritten_request_has_the_prompt_that_is_sent() -> None:
    request, _ = request_for()
    request.body = b'{"model": "alias", "messages": []}'
    request.read_with_prompt()
    request.rewrite(request.head, b'{"model": "m", "messages": [{"role": "system"}]}', "m", has_new_limit=False)
    content = request.read_with_prompt()
    assert isinstance(content, PromptContent)
    assert (content.model, len(content.messages or ())) == ("m", 1)
