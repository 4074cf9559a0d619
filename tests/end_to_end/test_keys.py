"""Keys cannot be bypassed: the real program in front of llama.cpp and of a recording engine."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.conftest import StartProxy
from end_to_end.recording import RecordingEngine, raw
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

ALICE, ADMIN, METRICS = (f"sk-{name}-0123456789abcdef" for name in ("alice", "admin", "metrics"))
SETTINGS = {"API_KEYS": f"alice:{ALICE}", "ADMIN_KEY": ADMIN, "METRICS_KEY": METRICS, "HEALTH_DETAILS": "key"}
BEARER = f"Authorization: Bearer {ALICE}"
CHAT = "/v1/chat/completions"
BODY = b'{"messages":[{"role":"user","content":"kin"}],"max_tokens":2}'
OPEN = ("/", "/health", "/livez", "/readyz", "/docs", "/redoc", "/openapi.json")


def request(line: str, *fields: str | bytes, body: bytes = b"", version: str = "1.1") -> bytes:
    lines = [f"{line} HTTP/{version}", "Host: proxy", *fields]
    if version == "1.1":
        lines.append("Connection: close")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    section = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\r\n" for line in lines)
    return section + b"\r\n" + body


def chat_with(*fields: str | bytes, version: str = "1.1") -> bytes:
    return request(f"POST {CHAT}", *fields, body=BODY, version=version)


def _chunked(*fields: str) -> bytes:
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    return request(f"POST {CHAT}", *fields, "Transfer-Encoding: chunked") + chunk


UPGRADE = ("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", "Connection: Upgrade, HTTP2-Settings")
WEBSOCKET = (
    b"Host: proxy", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
)  # fmt: skip
WRONG_PROTOCOL = b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.wrong"
METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "get")

# Refused requests by name, each with the expected status.
REFUSED: dict[str, tuple[bytes, int]] = {
    "no key": (chat_with(), 401),
    "wrong key": (chat_with(f"{BEARER}x"), 401),
    "empty Bearer": (chat_with("Authorization: Bearer"), 401),
    "blank Bearer": (chat_with("Authorization: Bearer  "), 401),
    "empty field": (chat_with("Authorization:"), 401),
    "Basic": (chat_with(f"Authorization: Basic {ALICE}"), 401),
    "no scheme": (chat_with(f"Authorization: {ALICE}"), 401),
    "key in the query": (request(f"POST {CHAT}?api_key={ALICE}&key={ALICE}&authorization={ALICE}", body=BODY), 401),
    "key in a cookie": (chat_with(f"Cookie: api_key={ALICE}; Authorization={ALICE}"), 401),
    "Proxy-Authorization": (chat_with(f"Proxy-{BEARER}"), 401),
    "two Authorization": (chat_with(BEARER, BEARER), 400),
    "good, then wrong Authorization": (chat_with(BEARER, f"authorization: Bearer {ADMIN}"), 400),
    "two x-api-key": (chat_with(f"X-Api-Key: {ALICE}", f"x-api-key: {ALICE}"), 400),
    "folded": (chat_with("Authorization: Bearer", f" {ALICE}"), 400),
    "blank before the colon": (chat_with(f"Authorization : Bearer {ALICE}"), 400),
    "wrong x-api-key": (chat_with("X-Api-Key: wrong"), 401),
    "empty x-api-key": (chat_with("X-Api-Key:"), 401),
    "both wrong": (chat_with("Authorization: Bearer a", "X-Api-Key: b"), 401),
    "NUL": (chat_with(f"{BEARER}\0"), 400),
    "NUL in x-api-key": (chat_with(f"X-Api-Key: {ALICE}\0"), 400),
    "very long": (chat_with("Authorization: Bearer " + "x" * 30_000), 401),
    "too long": (chat_with("Authorization: Bearer " + "x" * 40_000), 431),
    "Unicode": (chat_with("Authorization: Bearer ключ-模型-🔑"), 401),
    "Unicode before the key": (chat_with(f"Authorization: Bearer \u200b{ALICE}"), 401),
    "invalid UTF-8": (chat_with(b"Authorization: Bearer \xff\xfe"), 401),
    "admin key": (chat_with(f"Authorization: Bearer {ADMIN}"), 401),
    "metrics key": (chat_with(f"X-Api-Key: {METRICS}"), 401),
    "HTTP/1.0": (chat_with(version="1.0"), 401),
    "HTTP/1.0 without Host": (b"GET /v1/models HTTP/1.0\r\n\r\n", 401),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", 400),
    "chunked": (_chunked(), 401),
    "Upgrade": (request("GET /v1/models", *UPGRADE), 401),
    "malformed WebSocket": (request("GET /v1/realtime", "Upgrade: websocket", "Sec-WebSocket-Key: x"), 400),
    **{
        f"WebSocket, {name}": (b"\r\n".join((b"GET /%b HTTP/1.1" % path, *WEBSOCKET, b"", b"")), 401)
        for name, path in (("no key", b"v1/realtime"), ("path of the web UI", b"x.js"))
    },
    "WebSocket, wrong key": (b"\r\n".join((b"GET /v1/realtime HTTP/1.1", *WEBSOCKET, WRONG_PROTOCOL, b"", b"")), 401),
    "Expect": (chat_with("Expect: 100-continue"), 401),
    "absolute form": (request("GET http://proxy/v1/models"), 401),
    "absolute form with another host": (request("GET http://other/health/x"), 401),
    "authority form": (request("CONNECT proxy:443"), 405),
    "asterisk form": (request("OPTIONS *"), 401),
    "another Host": (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 401),
    "forged headers": (chat_with("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=::1"), 401),
    "another path in a header": (chat_with("X-Original-URL: /health", "X-Rewrite-URL: /health"), 401),
    "another method in a header": (chat_with("X-HTTP-Method-Override: GET"), 401),
    "like a preflight, but a POST": (chat_with("Origin: http://a", "Access-Control-Request-Method: POST"), 401),
    **{
        f"GET {path}": (request(f"GET {path}"), 401)
        for path in (
            "/v1/models", "//v1/models", "/v1/models/", "/%761/models", "/v1//models", "/./v1/models", "/models",
            "/health/../v1/models", "/docs/../v1/models", "/health//", "//health", "/health%2f..%2fslots",
            "/health;/slots",
            "/Health", "/%68ealth", "/docs//", "/docs/other.js", "/openapi.json/x", "/slots", "/props", "/metrics//",
            "//metrics", "/v1/metrics", "/adminx", "//admin/keys", "/%61dmin/keys", "/x/../slots",
        )
    },
    "HEAD /v1/models": (request("HEAD /v1/models"), 401),
    **{f"{method} {path}": (request(f"{method} {path}"), 401) for method in METHODS for path in OPEN},
    **{
        f"{method} {path} with a client key": (request(f"{method} {path}", BEARER), 401)
        for method in (*METHODS, "GET", "HEAD")
        for path in ("/admin", "/admin/", "/admin/keys", "/admin/../slots")
    },
    "GET /metrics with a client key": (request("GET /metrics", BEARER), 401),
    "HEAD /metrics with a client key": (request("HEAD /metrics", BEARER), 401),
    **{
        f"{method} {path} with the metrics key": (request(f"{method} {path}", f"X-Api-Key: {METRICS}"), 401)
        for method in METHODS
        for path in ("/metrics", "/health", "/v1/models")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[LlamaServer]:
    with LlamaServer(tiny_model, "--slots", "2", "--context", "8192", "--alias", "tiny") as server:
        yield server


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, server: LlamaServer) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("proxy"), [server.url], **SETTINGS) as proxy:
        yield proxy


def status_of(reply: bytes) -> int:
    assert reply.startswith(b"HTTP/1.1 "), reply
    return int(reply[9:12])


def replies_in(received: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


@pytest.mark.parametrize("name", REFUSED)
async def test_invalid_credentials_are_refused(proxy: Proxy, name: str) -> None:
    sent, status = REFUSED[name]

    reply = await raw(proxy.url, sent)

    assert status_of(reply) == status, reply
    assert replies_in(reply) == [status]
    assert b"x-backend" not in reply.lower()
    assert ALICE.encode() not in reply


async def test_refused_requests_reach_no_engine(start_proxy: StartProxy) -> None:
    async with RecordingEngine() as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url, **SETTINGS)
        for sent, _ in REFUSED.values():
            await raw(proxy.url, sent)
        assert engine.forwarded == []

        assert status_of(await raw(proxy.url, chat_with(BEARER))) == 200
        assert len(engine.forwarded) == 1
        await eventually(lambda: len(proxy.access_lines) == len(REFUSED) + 1)
        assert {line.backend for line in proxy.access_lines[:-1]} == {"-"}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([BEARER], id="Bearer"),
        pytest.param([f"authorization: bearer   {ALICE} "], id="lower case"),
        pytest.param([f"X-Api-Key: {ALICE}"], id="x-api-key"),
        pytest.param([BEARER, f"X-Api-Key: {ALICE}"], id="both"),
        pytest.param(["Authorization: Bearer none", f"X-Api-Key: {ALICE}"], id="one of both valid"),
        pytest.param([BEARER, *UPGRADE], id="with an ignored upgrade"),
    ],
)
async def test_request_with_a_key_is_served(proxy: Proxy, fields: list[str]) -> None:
    reply = await raw(proxy.url, chat_with(*fields))

    assert status_of(reply) == 200
    assert b"x-backend" in reply.lower()
    assert b'"choices"' in reply
    assert status_of(await raw(proxy.url, chat_with(*fields, version="1.0"))) == 200


async def test_chunked_request_with_a_key_is_served(proxy: Proxy) -> None:
    assert status_of(await raw(proxy.url, _chunked(BEARER))) == 200


# --- each request needs its own key


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("second", ["no key", "wrong key", "chunked", "GET /v1/models", "POST /health"])
async def test_key_authorizes_only_its_own_request(proxy: Proxy, second: str, *, at_once: bool) -> None:
    first = chat_with(BEARER).replace(b"Connection: close\r\n", b"")
    parts = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(parts[0], int(parts[1]))
    writer.write(first + REFUSED[second][0] if at_once else first)
    async with asyncio.timeout(30):
        received = await reader.readuntil(b"}}")
        if not at_once:
            writer.write(REFUSED[second][0])
        received += await reader.read()
    writer.close()
    await writer.wait_closed()

    assert replies_in(received) == [200, 401]


async def test_nothing_is_read_after_a_refusal(start_proxy: StartProxy) -> None:
    async with RecordingEngine() as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url, **SETTINGS)
        without_close = chat_with().replace(b"Connection: close\r\n", b"")

        received = await raw(proxy.url, without_close + chat_with(BEARER))

        assert replies_in(received) == [401]
        assert engine.forwarded == []


@pytest.mark.parametrize("fields", [(), ("Expect: 100-continue",)])
async def test_request_is_refused_before_its_body_is_sent(proxy: Proxy, fields: tuple[str, ...]) -> None:
    sent = request(f"POST {CHAT}", *fields, "Content-Length: 60000000")

    assert replies_in(await raw(proxy.url, sent)) == [401]


async def test_refused_request_whose_body_still_arrives_gets_its_answer(proxy: Proxy) -> None:
    body = b"x" * 3_000_000

    assert replies_in(await raw(proxy.url, request(f"POST {CHAT}", body=body))) == [401]


# --- refusals


async def test_refusal_has_the_format_of_the_called_api(proxy: Proxy) -> None:
    openai = await send(proxy.url, CHAT, chat())
    anthropic = await send(proxy.url, "/v1/messages", chat())

    assert openai.json["error"]["type"] == "authentication_error"
    assert openai.json["error"]["code"] == "invalid_api_key"
    assert anthropic.json["type"] == "error"
    assert anthropic.json["error"]["type"] == "authentication_error"
    assert openai.headers["access-control-allow-origin"] == "*"


# --- open paths, and paths with separate keys


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_own_paths_need_no_key(proxy: Proxy, method: str, path: str) -> None:
    assert (await send(proxy.url, path, method=method)).status == 200
    assert (await send(proxy.url, f"{path}?x=1", method=method, headers={"X-Api-Key": "wrong"})).status == 200


async def test_metrics_need_the_metrics_key(proxy: Proxy) -> None:
    assert (await send(proxy.url, "/metrics")).status == 401
    for secret, status in ((METRICS, 200), (ADMIN, 401), (ALICE, 401), ("", 401)):
        assert (await send(proxy.url, "/metrics", headers={"Authorization": f"Bearer {secret}"})).status == status
        assert (await send(proxy.url, "/metrics?a", headers={"X-Api-Key": secret}, method="HEAD")).status == status


async def test_admin_shows_keys_without_secrets(proxy: Proxy) -> None:
    reply = await send(proxy.url, "/admin/keys", headers={"Authorization": f"Bearer {ADMIN}"})

    assert reply.status == 200
    [key] = reply.json["keys"]
    assert key["name"] == "alice"
    assert b"sk-" not in reply.body


@pytest.mark.parametrize("keys", [{"API_KEYS": f"alice:{ALICE}"}, {}], ids=["keys", "no keys"])
async def test_operator_paths_reach_no_engine(start_proxy: StartProxy, keys: dict[str, str]) -> None:
    async with RecordingEngine() as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url, ADMIN_KEY=ADMIN, METRICS_KEY=METRICS, **keys)
        paths = ("/admin", "/admin/", "/admin/keys", "/admin/x", "/admin/../v1/models", "/admin//")
        lines = [f"{method} {path}" for path in paths for method in (*METHODS, "GET", "HEAD")]
        for line, secret in itertools.product((*lines, "GET /metrics", "HEAD /metrics"), (ADMIN, METRICS, ALICE)):
            method, path = line.split()
            reply = await send(proxy.url, path, method=method, headers={"Authorization": f"Bearer {secret}"})
            assert "x-backend" not in reply.headers, line
            assert reply.status != 204, line

        assert engine.forwarded == []


async def test_admin_is_off_without_an_admin_key(start_proxy: StartProxy) -> None:
    async with RecordingEngine() as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url)
        for path in ("/admin", "/admin/", "/admin/keys"):
            for method in ("GET", "POST", "OPTIONS"):
                reply = await send(proxy.url, path, method=method, headers={"Authorization": "Bearer None"})
                assert (reply.status, reply.json["error"]["code"]) == (404, "admin_off")
        assert engine.forwarded == []
        assert (await send(proxy.url, "/metrics")).status == 200


async def test_backend_addresses_are_shown_only_with_a_key(proxy: Proxy, server: LlamaServer) -> None:
    address = server.url.removeprefix("http://").encode()
    without_key = await send(proxy.url, "/health")
    with_key = await send(proxy.url, "/health", headers={"Authorization": f"Bearer {ALICE}"})

    assert address not in without_key.body
    assert without_key.json["available_backends"] == ["backend-1"]
    assert [one["backend"] for one in without_key.json["details"]] == ["backend-1"]
    assert (without_key.json["status"], without_key.json["total_backends"]) == ("ok", 1)
    assert with_key.json["available_backends"] == [server.url]
    for path in OPEN:
        assert address not in (await send(proxy.url, path)).body


# --- browsers


async def test_preflight_is_answered_without_a_key_or_an_engine(start_proxy: StartProxy) -> None:
    """A browser sends a preflight without credentials, whatever request follows."""
    async with RecordingEngine() as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url, **SETTINGS)
        fields = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
        for path in (CHAT, "/v1/models", "/slots", "/health", "/sleep"):
            reply = await send(proxy.url, path, method="OPTIONS", headers=fields)
            assert reply.status == 204
            assert "authorization" in reply.headers["access-control-allow-headers"]
            assert reply.headers["access-control-allow-origin"] == "*"
        assert engine.forwarded == []

        refused = await send(proxy.url, "/admin/keys", method="OPTIONS", headers=fields)
        assert refused.status == 401


async def test_stream_with_a_key_arrives_token_by_token(proxy: Proxy) -> None:
    body = chat(20, stream=True)
    async with Call(proxy.url, CHAT, body, headers={"Authorization": f"Bearer {ALICE}"}) as call:
        call.send()
        assert await call.head() == 200
        events = []
        while event := await call.event():
            events.append(event)

    assert events[-1] == b"data: [DONE]\n\n"
    assert len(events) > 20
