"""Raw messages: valid, unusual and invalid ones. Each is complete, so they can be concatenated."""

from __future__ import annotations

from dataclasses import replace

from inference_engine_proxy_server.wire.request_head import HeadLimits
from support.fakes.front import LIMITS

__all__ = [
    "BAD_REPLIES",
    "CHUNKED",
    "GET",
    "HOST",
    "MALFORMED",
    "ODD",
    "REPLIES",
    "TIGHT",
    "TOKENS",
    "VALID",
    "post",
]

TIGHT = replace(LIMITS, head=HeadLimits(line_bytes=60, total_bytes=300, field_count=8), body_bytes=40)
"""Limits so small that short messages reach them."""

HOST = b"Host: a\r\n"
GET = b"GET /get HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST /chunked HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"
_EXPECTS = b"POST /expects HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n"


def post(body: bytes, fields: bytes = b"") -> bytes:
    return b"POST /post HTTP/1.1\r\n" + HOST + fields + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


VALID = [
    GET,
    post(b""),
    post(b"hello"),
    post(b"x" * 40, b"X-Request-Id: mine\r\n"),
    post(b"GET / HTTP/1.1\r\n\r\n", b"Connection: keep-alive, X-A, x-b\r\nX-A: 1\r\nX-B: 2\r\nx-c: 3\r\n"),
    CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n",
    CHUNKED + b"\r\n2;a=b\r\nhe\r\n003\r\nllo\r\n00\r\nTrailer: 1\r\n\r\n",
    _EXPECTS + b"Content-Length: 5\r\n\r\nhello",
    _EXPECTS + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    _EXPECTS + b"\r\n",
    b"HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PUT http://b/put?q HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1",
    b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
]
ODD = [
    b"\r\n" + GET,
    b"\r\n\r\n" + GET,
    b"GET /odd HTTP/1.1\r\nhOsT:\t a \t\r\nX:\r\nX: \xff\t\x80 \r\nTE: gzip\r\nKeep-Alive: 5\r\n\r\n",
    b"GET /" + b"l" * 50 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /" + b"l" * 60 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /old HTTP/1.0\r\n\r\n",
    b"POST /upgrade HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade, host\r\nHTTP2-Settings: a\r\n\r\n",
]
MALFORMED = [
    b"GET / HTTP/1.1\n" + HOST + b"\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"X: \0\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b" folded\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 9 + b"\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"1" * 300 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n1",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 41\r\n\r\n" + b"x" * 41,
    CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n",
    CHUNKED + b"\r\n5\r\nhelloX\r\n0\r\n\r\n",
    CHUNKED + b"\r\n29\r\n" + b"x" * 41 + b"\r\n0\r\n\r\n",
    _EXPECTS.replace(b"100-continue", b"200-ok") + b"\r\n",
    b"\x16\x03\x01\x02\x00",
]
TOKENS = [b"\r\n", b"\n", b"\r", b" ", b":", b",", b"\0", b"\t", b"0", b"5", b"f", b";", b"Host: b\r\n", b"HTTP/1.0"]
TOKENS += [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Connection: close\r\n", b"\r\n\r\n", b""]


REPLIES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: 1\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0005;a=b\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: X-A, close\r\nX-A: 1\r\nX-B: 1\r\n\r\nuntil the end",
    b"HTTP/1.0 200\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 404 \r\nKeep-Alive: timeout=5\r\nContent-Length: 1\r\n\r\n!",
]
BAD_REPLIES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"hello",
]
