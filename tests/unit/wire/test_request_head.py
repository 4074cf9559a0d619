from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.request_head import (
    HeadLimits,
    RequestHead,
    parse_request_head,
    valid_request_id,
)

LIMITS = HeadLimits(line_bytes=200, total_bytes=4096, field_count=10)
HOST = b"Host: a\r\n"


def request(fields: bytes = HOST, line: bytes = b"POST /v1/completions?x=1 HTTP/1.1") -> RequestHead:
    return parse_request_head(line + b"\r\n" + fields, LIMITS)


def refusal(fields: bytes = HOST, line: bytes = b"POST / HTTP/1.1") -> ClientError:
    with pytest.raises(ClientError) as caught:
        request(fields, line)
    return caught.value


def fields_onward(head: RequestHead, **options: bool) -> list[bytes]:
    section = head.for_backend(b"engine:1", b"", "id-1", 7, credentials=head.credentials, **{"close": False, **options})
    assert section.endswith(b"\r\n\r\n")
    return section[:-4].split(b"\r\n")[1:]


def test_a_request_is_read_as_sent() -> None:
    head = request(b"Host: a.b:80\r\nX-One:  1 \r\nContent-Length: 12\r\n")
    assert (head.method, head.target, head.path) == ("POST", b"/v1/completions?x=1", "/v1/completions")
    assert (head.host, head.minor_version, head.keep_alive) == (b"a.b:80", 1, True)
    assert (head.content_length, head.chunked, head.expects_continue) == (12, False, False)
    assert head.passed_on == b"X-One:  1 \r\n"


def test_a_forwarded_request_has_the_proxys_host_and_framing_and_the_clients_other_fields() -> None:
    head = request(b"Accept: */*\r\nHost: a\r\nContent-Length: 7\r\nX-Last: z\r\n")
    assert head.for_backend(b"engine:1", b"/base", "id-1", 7, credentials=b"", close=True) == (
        b"POST /base/v1/completions?x=1 HTTP/1.1\r\nhost: engine:1\r\nAccept: */*\r\nX-Last: z\r\n"
        b"x-request-id: id-1\r\ncontent-length: 7\r\nconnection: close\r\n\r\n"
    )


def test_a_request_without_body_is_forwarded_without_length() -> None:
    assert fields_onward(request()) == [b"host: engine:1", b"x-request-id: id-1"]


def test_a_chunked_request_is_forwarded_with_a_length() -> None:
    head = request(b"Host: a\r\nTransfer-Encoding: Chunked\r\n")
    assert head.chunked
    assert head.content_length is None
    assert fields_onward(head) == [b"host: engine:1", b"x-request-id: id-1", b"content-length: 7"]


LENGTH = b"Host: a\r\nContent-Length: 5\r\n"
CHUNKED = b"Host: a\r\nTransfer-Encoding: chunked\r\n"
BAD_FIELDS = {
    "PA01-length-then-chunked": (LENGTH + b"Transfer-Encoding: chunked\r\n", 400),
    "PA02-chunked-then-length": (CHUNKED + b"Content-Length: 5\r\n", 400),
    "PA03-chunked-twice": (CHUNKED + b"Transfer-Encoding: chunked\r\n", 400),
    "PA03-chunked-chunked": (b"Host: a\r\nTransfer-Encoding: chunked, chunked\r\n", 400),
    "PA03-chunked-not-last": (b"Host: a\r\nTransfer-Encoding: chunked, gzip\r\n", 400),
    "PA03-gzip-then-chunked": (b"Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
    "PA03-prefixed": (b"Host: a\r\nTransfer-Encoding: xchunked\r\n", 400),
    "PA03-unknown-coding": (b"Host: a\r\nTransfer-Encoding: gzip\r\n", 400),
    "PA03-empty-coding": (b"Host: a\r\nTransfer-Encoding:\r\n", 400),
    "PA04-two-lengths": (LENGTH + b"Content-Length: 6\r\n", 400),
    "PA04-same-length-twice": (LENGTH + b"content-length: 5\r\n", 400),
    "PA04-list-of-lengths": (b"Host: a\r\nContent-Length: 5, 5\r\n", 400),
    **{
        f"PA05-length-{number}": (b"Host: a\r\nContent-Length:" + value + b"\r\n", 400)
        for number, value in enumerate(
            [b"+5", b"-0", b"-1", b"0x5", b"1_0", b"5 5", b"", b"\xd9\xa5", b"9" * 30, b"05", b"00", b"5;", b"5.0"]
        )
    },
    "PA10-bare-line-feed": (b"Host: a\nX: 1\r\n", 400),
    "PA10-bare-line-feed-at-the-end": (b"Host: a\r\nX: 1\n", 400),
    "PA11-bare-carriage-return": (b"Host: a\r\nX: \rTransfer-Encoding: chunked\r\n", 400),
    "PA11-carriage-return-twice": (b"Host: a\r\nX: 1\r\r\n", 400),
    "PA11-nul": (b"Host: a\r\nX: a\0b\r\n", 400),
    "PA11-control-character": (b"Host: a\r\nX: a\x7fb\r\n", 400),
    "PA12-folded-line": (b"Host: a\r\nX: 1\r\n 2\r\n", 400),
    "PA12-folded-coding": (b"Host: a\r\nTransfer-Encoding:\r\n chunked\r\n", 400),
    "PA13-blank-before-colon": (b"Host: a\r\nTransfer-Encoding : chunked\r\n", 400),
    "PA13-blank-before-first-field": (b" Host: a\r\n", 400),
    "PA13-no-name": (b"Host: a\r\n: 1\r\n", 400),
    "PA13-no-colon": (b"Host: a\r\nX\r\n", 400),
    "PA13-name-is-no-token": (b"Host: a\r\nX[]: 1\r\n", 400),
    "PA13-name-is-not-ascii": (b"Host: a\r\n\xc3\xa4: 1\r\n", 400),
    "PA14-no-host": (b"X: 1\r\n", 400),
    "PA14-two-hosts": (b"Host: a\r\nhost: a\r\n", 400),
    "PA14-empty-host": (b"Host:\r\n", 400),
    "PA14-list-of-hosts": (b"Host: a,b\r\n", 400),
    "PA14-host-with-user": (b"Host: u@a\r\n", 400),
    "PA14-host-with-path": (b"Host: a/b\r\n", 400),
    "PA14-host-with-wrong-port": (b"Host: a:port\r\n", 400),
    "unknown-expectation": (b"Host: a\r\nExpect: foo\r\n", 417),
    "two-expectations": (b"Host: a\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n", 400),
    "too-many-fields": (HOST + b"X: 1\r\n" * 10, 431),
}


@pytest.mark.parametrize(("fields", "status"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_bad_fields_are_refused(fields: bytes, status: int) -> None:
    assert refusal(fields).status == status


BAD_LINES = {
    "PA18-connect": (b"CONNECT h:443 HTTP/1.1", 405),
    "PA18-trace": (b"TRACE / HTTP/1.1", 405),
    "PA18-star": (b"GET * HTTP/1.1", 400),
    "PA18-long-method": (b"M" * 33 + b" / HTTP/1.1", 501),
    "PA18-method-is-no-token": (b"G@T / HTTP/1.1", 400),
    "PA20-no-version": (b"GET /", 400),
    "PA20-version-2-preface": (b"PRI * HTTP/2.0", 505),
    "PA20-version-3": (b"GET / HTTP/3.0", 505),
    "PA20-two-digits": (b"GET / HTTP/1.32", 400),
    "PA20-leading-zero": (b"GET / HTTP/01.1", 400),
    "PA20-future-minor": (b"GET / HTTP/1.2", 400),
    "PA20-lower-case": (b"GET / http/1.1", 400),
    "PA16-other-scheme": (b"GET file:///etc/passwd HTTP/1.1", 400),
    "PA16-user": (b"GET http://u@h/ HTTP/1.1", 400),
    "PA16-no-authority": (b"GET http:/// HTTP/1.1", 400),
    "no-slash": (b"GET v1/models HTTP/1.1", 400),
    "fragment": (b"GET /#a HTTP/1.1", 400),
    "two-blanks": (b"GET  / HTTP/1.1", 400),
    "blank-in-target": (b"GET /a b HTTP/1.1", 400),
    "blank-first": (b" GET / HTTP/1.1", 400),
    "blank-last": (b"GET / HTTP/1.1 ", 400),
    "target-is-not-ascii": (b"GET /\xc3\xa4 HTTP/1.1", 400),
    "PA10-bare-line-feed": (b"GET / HTTP/1.1\nX: 1", 400),
    "PA23-long-target": (b"GET /" + b"a" * 200 + b" HTTP/1.1", 414),
    "PA23-long-nonsense": (b"\xff" * 201, 400),
}


@pytest.mark.parametrize(("line", "status"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_request_line_is_refused(line: bytes, status: int) -> None:
    assert refusal(HOST, line).status == status


def test_sizes_at_the_limits_are_allowed() -> None:
    assert len(request(HOST + b"X: 1\r\n" * 9).passed_on) == 9 * len(b"X: 1\r\n")
    target = b"/" + b"a" * (LIMITS.line_bytes - len("GET / HTTP/1.1"))
    assert request(line=b"GET " + target + b" HTTP/1.1").target == target
    assert refusal(line=b"GET " + target + b"a HTTP/1.1").status == 414


@pytest.mark.parametrize(
    ("target", "origin_form"),
    [
        (b"http://169.254.169.254/latest?a=b", b"/latest?a=b"),
        (b"HTTPS://other:8080", b"/"),
        (b"http://[::1]:80?q", b"/?q"),
        (b"/%2e%2E//x?http://y", b"/%2e%2E//x?http://y"),
    ],
    ids=["PA16-path", "PA17-no-path", "PA17-query", "origin-form-is-kept"],
)
def test_the_authority_of_an_absolute_target_is_dropped(target: bytes, origin_form: bytes) -> None:
    assert request(line=b"GET " + target + b" HTTP/1.1").target == origin_form


def test_options_may_target_the_whole_server() -> None:
    head = request(line=b"OPTIONS * HTTP/1.1")
    assert head.path == "*"
    assert head.for_backend(b"b", b"/prefix", "id", 0, credentials=b"", close=False).startswith(
        b"OPTIONS * HTTP/1.1\r\n"
    )


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        (b"1", b"", True),
        (b"1", b"Connection: Close\r\n", False),
        (b"1", b"Connection: keep-alive\r\nConnection: close\r\n", False),
        (b"1", b"Connection: x, CLOSE\r\n", False),
        (b"0", b"", False),
        (b"0", b"Connection: Keep-Alive\r\n", True),
        (b"0", b"Connection: close\r\n", False),
    ],
)
def test_keep_alive_follows_version_and_connection(version: bytes, connection: bytes, *, keep_alive: bool) -> None:
    assert request(HOST + connection, b"GET / HTTP/1." + version).keep_alive is keep_alive


def test_http_1_0_needs_no_host_and_has_neither_codings_nor_expectations() -> None:
    line = b"POST / HTTP/1.0"
    assert request(b"", line).host == b""
    assert refusal(b"Transfer-Encoding: chunked\r\n", line).status == 400
    assert not request(b"Expect: 100-continue\r\nContent-Length: 1\r\n", line).expects_continue
    assert request(b"Host: a\r\nExpect: 100-Continue\r\n").expects_continue


def test_hop_by_hop_fields_are_not_forwarded() -> None:
    head = request(
        b"Host: a\r\nConnection: keep-alive, X-Private ,Authorization\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n"
        b"TE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nx-private: 1\r\nX-Kept: 2\r\n"
    )
    assert head.passed_on == b"X-Kept: 2\r\n"
    assert request(b"Expect: 100-continue\r\nHost: a\r\nConnection: close\r\nClose: 1\r\n").passed_on == b"Close: 1\r\n"


def test_fields_named_in_connection_do_not_remove_the_proxys_own() -> None:
    head = request(LENGTH + b"Connection: Host, Content-Length, X-Request-Id\r\n")  # PA21
    assert fields_onward(head) == [b"host: engine:1", b"x-request-id: id-1", b"content-length: 7"]


@pytest.mark.parametrize(
    ("value", "accepted"),
    [(b"a-Z_0.9", True), (b"x" * 128, True), (b"x" * 129, False), (b"", False), (b"a b", False), (b"\xc3\xa4", False)],
)
def test_a_request_id_is_taken_only_if_it_is_harmless(value: bytes, *, accepted: bool) -> None:
    assert valid_request_id(value) == (value.decode() if accepted else None)
    head = request(HOST + b"X-Request-Id: " + value + b"\r\n")
    assert head.request_id == (value.decode() if accepted else None)
    assert head.passed_on == b""


def test_two_request_ids_count_as_none() -> None:
    assert request(HOST + b"X-Request-Id: a\r\nX-Request-Id: b\r\n").request_id is None


NAMES = st.sampled_from(
    [
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Expect",
        b"TE",
        b"X-A",
        b"X-Request-Id",
        b"",
        b" ",
    ]
)
VALUES = st.sampled_from(
    [b"a", b"5", b"05", b"5, 5", b"chunked", b"close", b"Content-Length, Host", b"100-continue", b"a:1", b"x y", b""]
) | st.binary(max_size=8)
SEPARATORS = st.sampled_from([b":", b": ", b" :", b":\t", b""])
LINE_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n ", b""])
FIELD = st.tuples(NAMES, SEPARATORS, VALUES, LINE_ENDS).map(b"".join)
LINE = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /a?b HTTP/1.0", b"OPTIONS * HTTP/1.1", b"PUT http://h/p HTTP/1.1", b"PRI * HTTP/2.0"]
)


@given(LINE, st.lists(FIELD, max_size=6).map(b"".join), st.booleans())
def test_any_accepted_request_is_forwarded_with_exactly_one_framing(line: bytes, fields: bytes, close: bool) -> None:
    try:  # PA29
        head = request(fields, line)
    except ClientError:
        return
    section = head.for_backend(b"engine:1", b"", "id-1", 7, credentials=b"", close=close)
    names = [name.lower() for name in re.findall(rb"\n([^:\r\n]*)", section[:-2])[:-1]]
    assert section.count(b"\r\n") == section.count(b"\n") == section.count(b"\r") == len(names) + 2
    assert names.count(b"host") == names.count(b"x-request-id") == 1
    assert names.count(b"content-length") == (head.chunked or head.content_length is not None)
    assert b"transfer-encoding" not in names
    assert names.count(b"connection") == close
    assert b"expect" not in names


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else(section: bytes) -> None:
    with pytest.raises(ClientError):
        parse_request_head(section, LIMITS)


@pytest.mark.parametrize(
    ("fields", "is_cross_origin"),
    [
        (HOST, False),
        (b"Host: a\r\nOrigin: http://a\r\n", False),
        (b"Host: a:80\r\norigin:https://A:80 \r\n", False),
        (b"Host: a\r\nOrigin: http://a:8080\r\n", True),
        (b"Host: a\r\nOrigin: http://b\r\n", True),
        (b"Host: a\r\nOrigin: null\r\n", True),
        (b"Host: a\r\nOrigin: file://\r\n", True),
        (b"Host: a\r\nX-Origin: http://b\r\n", False),
    ],
)
def test_a_request_of_a_page_from_elsewhere_is_cross_origin(fields: bytes, is_cross_origin: bool) -> None:
    assert request(fields).is_cross_origin is is_cross_origin
