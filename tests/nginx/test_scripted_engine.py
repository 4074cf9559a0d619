"""Which requests reach an engine through NGINX and the proxy, and how often."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import pytest

from end_to_end.conftest import StartProxy
from nginx.conftest import PATIENT, StartNginx
from nginx.server import Nginx
from support.fakes.engine import EngineConnection, FakeEngine, answering, http_reply
from support.http_client import Call, send
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
EVENTS = 20
MODELS = http_reply(b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"fake"}]}')
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ORIGIN_FIELDS = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded")
NOT_FOR_THE_WORLD = (
    "/metrics", "/metrics?x=1", "//metrics", "/metrics/", "/%6detrics", "/%6Detrics", "/./metrics", "/METRICS",
    "/metrics%2f", "/%2fmetrics", "/x/../metrics", "/x/%2e%2e/metrics", "/x%2f..%2fmetrics", "/metrics/.",
    "/metrics//", "http://127.0.0.1/metrics", "/admin", "/admin/", "/admin/anything", "/admin//x", "//admin/x",
    "/%61dmin/x", "/Admin/x", "/admin%2fx", "/v1/../admin/x",
)  # fmt: skip


async def silent(connection: EngineConnection) -> None:
    """Answers polls, but no POST."""
    while not (await connection.request()).startswith(b"POST "):
        connection.send(MODELS)


async def closing(connection: EngineConnection) -> None:
    """Answers polls; closes the connection on a POST."""
    await silent(connection)
    connection.finish()


async def streaming(connection: EngineConnection) -> None:
    """Answers polls; a POST gets a stream.

    Its first event comes at once, because the proxy holds the head until then; each further one at its cue.
    """
    await silent(connection)
    connection.send(STREAM)
    for number in range(EVENTS):
        connection.send(b"b\r\ndata: %3d\n\n\r\n" % number)
        await connection.cue.wait()
        connection.cue.clear()
    connection.send(b"0\r\n\r\n")


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """Answers every request with 200."""
    async with FakeEngine(answering(MODELS)) as running:
        yield running


@pytest.fixture
async def proxy(engine: FakeEngine, start_proxy: StartProxy) -> Proxy:
    settings = PATIENT | {
        "TRUSTED_PROXIES": "private",
        "ACCESS_LOG_PROBES": "true",
    }
    # In a thread, because the proxy polls the engine, which runs in this event loop.
    return await asyncio.to_thread(start_proxy, engine.url, **settings)


@pytest.fixture
def nginx(start_nginx: StartNginx, proxy: Proxy) -> Nginx:
    return start_nginx(proxy.url)


def fields_of(request: bytes) -> dict[str, str]:
    """Fields by lower-case name; each occurs once."""
    lines = request.decode().partition("\r\n\r\n")[0].split("\r\n")[1:]
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(fields) == len(lines)
    return fields


def posts_to(*engines: FakeEngine) -> list[bytes]:
    return [request for engine in engines for request in engine.requests if request.startswith(b"POST ")]


async def test_each_event_arrives_before_the_next_one_is_generated(
    engine: FakeEngine, nginx: Nginx, secure: bool
) -> None:
    engine.script = streaming
    async with nginx.call(PATH, {"model": "m", "stream": True}, secure=secure) as stream:
        stream.send()
        assert await stream.head() == 200
        [source] = [connection for connection in engine.connections if connection.requests[-1].startswith(b"POST ")]
        for number in range(EVENTS):
            assert await stream.event() == b"data: %3d\n\n" % number
            source.cue.set()
        assert await stream.event() == b""

    assert stream.complete


async def test_origin_is_determined_by_nginx_not_by_the_client(engine: FakeEngine, nginx: Nginx, secure: bool) -> None:
    assert (await nginx.send("/x", secure=secure, headers=dict.fromkeys(ORIGIN_FIELDS, "6.6.6.6"))).status == 200

    seen = fields_of(engine.requests[-1])
    assert {name: seen[name] for name in ORIGIN_FIELDS if name in seen} == {
        "x-forwarded-for": "127.0.0.1, 127.0.0.1",  # the client, then NGINX
        "x-real-ip": "127.0.0.1",
        "x-forwarded-proto": "https" if secure else "http",
        "x-forwarded-host": (nginx.https_url if secure else nginx.url).partition("//")[2],
    }


@pytest.mark.parametrize("given", ["job-7.b_C", None, "a b", "x" * 129])
async def test_one_request_id_in_all_logs(engine: FakeEngine, nginx: Nginx, proxy: Proxy, given: str | None) -> None:
    """The client's id if the proxy would keep it, otherwise one from NGINX."""
    reply = await nginx.send("/x", headers={"X-Request-Id": given} if given else {})

    request_id = reply.headers["x-request-id"]
    assert request_id == given if given == "job-7.b_C" else re.fullmatch(r"[0-9a-f]{32}", request_id)
    assert fields_of(engine.requests[-1])["x-request-id"] == request_id
    await eventually(lambda: [line.request_id for line in proxy.access_lines][-1:] == [request_id])
    assert nginx.access_lines[-1].split()[-2:] == [request_id, urlsplit(proxy.url).netloc]


@pytest.mark.parametrize("has_probes", [False, True])
async def test_probes_are_logged_only_on_request(start_nginx: StartNginx, proxy: Proxy, has_probes: bool) -> None:
    nginx = start_nginx(proxy.url, ACCESS_LOG_PROBES=str(has_probes).lower())
    for path in ("/livez", "/readyz", "/health", "/metrics", "/v1/models"):
        await nginx.send(path)
    probes = ["/livez", "/readyz", "/health"] if has_probes else []
    logged = [*probes, "/metrics", "/v1/models"]
    await eventually(lambda: [line.split(" ")[2].strip('"') for line in nginx.access_lines] == logged)


async def test_path_arrives_as_it_was_sent(engine: FakeEngine, nginx: Nginx) -> None:
    for target in ("/v1/%2e%2e/x", "/v1/a%2Fb?c=%20d&e=/../f", "//v2//x/", "/v1/./x", "/%761/%C3%A9"):
        assert (await nginx.send(target)).status == 200
        assert engine.requests[-1].startswith(f"GET {target} HTTP/1.1\r\n".encode())


async def test_operator_paths_are_blocked_in_every_spelling(
    engine: FakeEngine, nginx: Nginx, proxy: Proxy, secure: bool
) -> None:
    polls = len(engine.requests)

    answers = {target: (await nginx.send(target, secure=secure)).status for target in NOT_FOR_THE_WORLD}

    assert answers == dict.fromkeys(NOT_FOR_THE_WORLD, 404)
    assert len(engine.requests) == polls
    assert (await send(proxy.url, "/livez")).status == 200
    await eventually(lambda: [line.path for line in proxy.access_lines] == ["/livez"])


async def test_all_other_paths_are_forwarded(nginx: Nginx, proxy: Proxy) -> None:
    targets = ["/health", "/livez", "/v1/models", "/", "/docs", "/metricsx", "/v1/admin/x"]

    assert {target: (await nginx.send(target)).status for target in targets} == dict.fromkeys(targets, 200)

    await eventually(lambda: [line.path for line in proxy.access_lines] == targets)


async def test_body_length_is_limited_by_the_setting(engine: FakeEngine, start_nginx: StartNginx, proxy: Proxy) -> None:
    nginx = start_nginx(proxy.url, MAX_REQUEST_BODY_BYTES="1000")

    assert (await nginx.send("/x", b"k" * 1000)).status == 200
    refused = await nginx.send("/x", b"k" * 1001)
    assert (refused.status, refused.headers["content-type"]) == (413, "application/json")
    assert refused.json["error"]["message"] == "The request body is longer than 1000 bytes."
    assert refused.json["error"]["request_id"]
    assert len(posts_to(engine)) == 1


async def test_usual_prompt_is_not_buffered_on_disk(nginx: Nginx) -> None:
    assert (await nginx.send("/x", b"k" * 1_000_000)).status == 200

    assert "temporary file" not in nginx.errors


async def test_default_body_limit_is_that_of_the_proxy(nginx: Nginx, proxy: Proxy) -> None:
    too_long = {"Content-Length": str(64 * 1024 * 1024 + 1)}
    for url in (proxy.url, nginx.url):
        assert (await send(url, "/x", b"k", headers=too_long)).status == 413


async def test_large_header_reaches_the_proxy(nginx: Nginx, proxy: Proxy) -> None:
    """The proxy limits the length of a line and of a section, and sends the errors."""
    assert (await nginx.send("/x", headers={"Authorization": "k" * 30_000})).status == 200
    many = {f"x-{number}": "k" * 9000 for number in range(4)}
    for reply in (await nginx.send("/x", headers=many), await nginx.send(f"/x?{'k' * 9000}")):
        assert reply.json["error"]["code"] in ("headers_too_large", "uri_too_long")


@pytest.mark.parametrize("path", [PATH, "/v1/responses"], ids=["repeatable", "not repeatable"])
async def test_nginx_adds_no_retry_to_those_of_the_proxy(
    start_nginx: StartNginx, start_proxy: StartProxy, path: str
) -> None:
    async with FakeEngine(closing) as one, FakeEngine(closing) as other:

        async def ask(through: Callable[[Proxy], str]) -> tuple[int, bytes, int]:
            """The number of attempts of a separate proxy, because a proxy ejects broken engines."""
            proxy = await asyncio.to_thread(start_proxy, one.url, other.url, **PATIENT)
            before = len(posts_to(one, other))
            reply = await send(through(proxy), path, {"model": "m"}, headers={"X-Request-Id": "same"})
            await asyncio.to_thread(proxy.stop)  # it would continue to poll the engines
            return reply.status, reply.body, len(posts_to(one, other)) - before

        direct = await ask(lambda proxy: proxy.url)
        passed = await ask(lambda proxy: start_nginx(proxy.url).url)

    assert passed == direct
    assert direct[2] == (2 if path == PATH else 1)


async def test_absent_proxy_is_an_error_in_the_format_of_the_api(start_nginx: StartNginx) -> None:
    reply = await start_nginx("http://127.0.0.1:9").send(PATH, {})

    assert (reply.status, reply.headers["content-type"]) == (502, "application/json")
    assert (reply.json["error"]["code"], reply.headers["retry-after"]) == ("proxy_unreachable", "3")


async def test_busy_reply_of_the_proxy_is_relayed_unchanged(start_nginx: StartNginx, start_proxy: StartProxy) -> None:
    proxy = start_proxy("http://127.0.0.1:9")
    nginx = start_nginx(proxy.url)
    headers = {"X-Request-Id": "same"}

    direct = await send(proxy.url, PATH, {}, headers=headers)
    passed = await nginx.send(PATH, {}, headers=headers)

    assert (passed.status, passed.body, passed.complete) == (503, direct.body, True)
    kept = ("content-type", "retry-after", "x-request-id")
    assert {name: passed.headers[name] for name in kept} == {name: direct.headers[name] for name in kept}


async def test_proxy_times_out_before_nginx(
    engine: FakeEngine, start_nginx: StartNginx, start_proxy: StartProxy
) -> None:
    settings = {"BACKEND_TIMEOUT_SECONDS": "1.5"}
    proxy = await asyncio.to_thread(start_proxy, engine.url, **PATIENT, **settings)
    nginx = start_nginx(proxy.url, **settings)
    engine.script = silent

    reply = await nginx.send(PATH, {"model": "m"})

    assert (reply.status, reply.json["error"]["code"]) == (504, "backend_timeout")


async def test_shutdown_lets_running_streams_finish(engine: FakeEngine, nginx: Nginx) -> None:
    engine.script = streaming
    async with nginx.call(PATH, {"model": "m", "stream": True}) as stream:
        stream.send()
        assert await stream.head() == 200

        nginx.drain()

        await eventually(lambda: refuses(nginx))
        [source] = [connection for connection in engine.connections if connection.requests[-1].startswith(b"POST ")]
        for _ in range(EVENTS):
            assert await stream.event()
            source.cue.set()
        assert (await stream.reply()).complete
    await eventually(lambda: nginx.exit_code == 0)


async def refuses(nginx: Nginx) -> bool:
    try:
        async with Call(nginx.url, "/"):
            return False
    except ConnectionRefusedError:
        return True
