"""Findings about the way through the public address: a real proxy behind real sockets that misbehave."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.finding import Finding
from inference_engine_proxy_server.doctor.public_checks import check_public
from support.certificate import Certificate, make_certificate, make_expired_certificate
from support.fleet import Fleet
from support.live_proxy import Proxy
from support.no_http import impatient, no_way, rude, silent
from support.tunnel import Relay, as_it_comes, at_the_end, compressed, in_clumps, old_http, rejecting, tunnel

WATCHED_SECONDS = 4.0


async def findings(url: str, of: Proxy | None, seconds: float = WATCHED_SECONDS) -> list[Finding]:
    """What the doctor of a proxy finds; ``None`` for one that does not run."""
    port = int(of.url.rpartition(":")[2]) if of is not None else 1
    settings = Settings(host="127.0.0.1", port=port)
    return await asyncio.to_thread(lambda: list(check_public(url, settings, time.time(), seconds)))


async def codes(url: str, of: Proxy | None, seconds: float = WATCHED_SECONDS) -> list[tuple[str, str]]:
    return [(one.code, one.severity.value) for one in await findings(url, of, seconds)]


def large_body(head: bytes) -> object:
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return length is not None and int(length[1]) > 2**20


@pytest.fixture
async def proxy(fleet: Fleet) -> Proxy:
    return await fleet.proxy(await fleet.engine())


@pytest.mark.parametrize(
    ("relay", "expected"),
    [
        (as_it_comes, []),
        (in_clumps, [("public_buffers", "error")]),
        (at_the_end, [("public_buffers", "error")]),
        (compressed, [("public_compresses", "warning")]),
        (old_http, [("public_closes_connections", "note")]),
        (rejecting(400, lambda head: len(head) > 8192), [("public_header_limit", "note")]),
        (rejecting(413, large_body), [("public_body_limit", "warning")]),
        (rejecting(404, lambda head: b"/pulse" in head), [("public_stream_refused", "note")]),
        (rejecting(401, lambda head: True), [("public_no_proxy", "error")]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_proxy_in_front(proxy: Proxy, relay: Relay, expected: list[tuple[str, str]]) -> None:
    seconds = WATCHED_SECONDS if relay in (as_it_comes, in_clumps, at_the_end) else 2
    async with tunnel(proxy.url, relay) as url:
        found = await codes(url, proxy, seconds)
        if found != expected:  # once more, because this machine may have stood still for a second
            found = await codes(url, proxy, seconds)
    assert found == expected


async def test_the_finding_says_what_to_change(proxy: Proxy) -> None:
    async with tunnel(proxy.url, in_clumps) as url:
        [found] = await findings(url, proxy)
    assert found.subject == f"public address {url}"
    assert re.fullmatch(r"A proxy in front buffers streams: an event came \d\.\d s late, although .*", found.problem)
    assert "proxy_buffering off" in found.remedy


async def test_another_proxy_or_none(fleet: Fleet, proxy: Proxy) -> None:
    other = await fleet.proxy(await fleet.engine())
    async with tunnel(other.url) as url:
        assert await codes(url, proxy, 3) == [("public_other_proxy", "error")]
        assert await codes(url, None, 3) == [("public_not_compared", "note")]
        assert await codes(url, other, 3) == []


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    certificate: Certificate | None = None,
) -> AsyncIterator[str]:
    """A server on the public address; yields ``HOST:PORT``."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.chain, certificate.key)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as listener:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def test_an_address_where_nothing_answers(free_port: int, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await codes(f"http://127.0.0.1:{free_port}", proxy) == [("public_refuses", "error")]
    assert await codes("http://no-such-host.invalid", proxy) == [("public_unknown_host", "error")]
    monkeypatch.setattr(socket, "create_connection", no_way)
    assert await codes(proxy.url, proxy) == [("public_unreachable", "error")]


async def test_a_server_that_speaks_something_else(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", impatient(socket.create_connection))
    async with listening(silent) as address:
        assert await codes(f"http://{address}", proxy) == [("public_timeout", "error")]
    async with listening(rude) as address:
        assert await codes(f"http://{address}", proxy) == [("public_no_http", "error")]
        assert await codes(f"https://{address}", proxy) == [("public_no_tls", "error")]
    async with listening(silent, make_certificate(tmp_path, "tls", days=30)) as address:
        assert await codes(f"http://{address}", proxy) == [("public_needs_tls", "error")]


@pytest.mark.parametrize(
    ("name", "is_known", "code"),
    [("127.0.0.1", False, "unknown"), ("other.example", True, "name"), ("expired", True, "expired")],
)
async def test_a_certificate_that_clients_reject(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str, is_known: bool, code: str
) -> None:
    if name == "expired":
        certificate = make_expired_certificate(tmp_path)
    else:
        subject = {"subject": f"DNS:{name}"} if name != "127.0.0.1" else {}
        certificate = make_certificate(tmp_path, "tls", days=30, **subject)
    if is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    async with listening(lambda _, writer: writer.close(), certificate) as address:
        [found] = await findings(f"https://{address}", proxy)
    assert found.code == f"public_certificate_{code}"
    assert is_known or "clients trust" in found.remedy
