"""Each cause for which a backend is not used has a reason of its own, which says what to do."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.test_backend_connections import certificate
from faults.test_backend_health import sends_and_closes
from inference_engine_proxy_server.config.settings import Settings
from support.engine import LOADING, Answer, Engine, answers_with, fails_with
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet
from support.http_client import send
from support.ports import unused_url
from support.running_proxy import RunningProxy
from support.waiting import eventually

__all__ = ["certificate"]


async def has_reason(proxy: RunningProxy, url: str, begins: str) -> bool:
    reason = str((await proxy.details())[url]["reason"])
    return reason.startswith(begins)


async def test_unknown_host_and_closed_port(fleet: Fleet) -> None:
    unknown, closed = "http://no-such-host.invalid:8080", unused_url()
    proxy = await fleet.proxy(unknown, closed, refresh_seconds=0.1)
    await eventually(lambda: has_reason(proxy, unknown, "its host name is unknown: check"))
    await eventually(lambda: has_reason(proxy, closed, "it cannot be reached, because nothing listens there: check"))


async def test_server_without_tls_at_an_https_url(fleet: Fleet) -> None:
    engine = await fleet.engine()
    engine.script = sends_and_closes(http_reply(b"", 400))
    url = engine.url.replace("http://", "https://")
    proxy = await fleet.proxy(url, refresh_seconds=0.1)
    await eventually(lambda: has_reason(proxy, url, "it does not speak TLS: check"))


async def test_silent_server_at_an_https_url(fleet: Fleet) -> None:
    """llama.cpp waits for the rest of a TLS hello, which it takes for the beginning of a request."""
    engine = await fleet.engine()
    url = engine.url.replace("http://", "https://")
    proxy = await fleet.proxy(url, refresh_seconds=1.0)
    await eventually(lambda: has_reason(proxy, url, "it does not answer the TLS handshake: check whether its URL"))


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        (
            b"\x15\x03\x01\0\x02\x02(",
            "it does not speak HTTP: check its port, and whether its URL should begin with https",
        ),
        (b"", "it closed the connection without an answer: check"),
        (http_reply(b"Client sent an HTTP request to an HTTPS server.\n", 400), "it speaks TLS: its URL"),
    ],
    ids=["TLS alert", "closed", "explained"],
)
async def test_server_with_tls_at_an_http_url(fleet: Fleet, said: bytes, begins: str) -> None:
    engine = await fleet.engine()
    engine.script = sends_and_closes(said)
    proxy = await fleet.proxy(engine, refresh_seconds=0.1)
    await eventually(lambda: has_reason(proxy, engine.url, begins))


class SpeaksFirst(Engine):
    """Sends a greeting on each new connection, as servers of SSH and SMTP do."""

    def accepted(self, connection: EngineConnection) -> None:
        connection.send(b"SSH-2.0-OpenSSH_9.2\r\n")
        super().accepted(connection)


async def greets_when_asked(connection: EngineConnection) -> None:
    connection.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    await connection.ended


class AnswersInAnotherProtocol(Engine):
    """Answers with a line that is not HTTP, and keeps the connection open."""

    def __init__(self) -> None:
        super().__init__(health=greets_when_asked)
        self.pages["/v1/models"] = greets_when_asked


class ClosesAtOnce(Engine):
    """Closes each new connection."""

    def accepted(self, connection: EngineConnection) -> None:
        connection.finish()


@pytest.mark.parametrize(
    ("server", "begins"),
    [
        (SpeaksFirst, "it does not speak HTTP: check its port"),
        (AnswersInAnotherProtocol, "it does not speak HTTP: check its port"),
        (ClosesAtOnce, "it closed the connection without an answer: check its port"),
    ],
)
async def test_another_protocol(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, server: Callable[[], Engine], begins: str
) -> None:
    engine = await fleet.add(server())
    proxy = await fleet.proxy(engine, refresh_seconds=0.1)
    await eventually(lambda: has_reason(proxy, engine.url, begins))
    assert (await proxy.post()).status == 503
    assert not [record for record in caplog.records if record.exc_info]


NO_PAGE = fails_with(404)
PAGE = answers_with(http_reply(b"<html>hello</html>"))


@pytest.mark.parametrize(
    ("models", "health", "begins"),
    [
        (NO_PAGE, NO_PAGE, "GET /v1/models answered 404: it is no engine"),
        (PAGE, PAGE, "GET /v1/models does not identify the engine yet: it is starting, or it is no engine"),
        (
            answers_with(LOADING),
            answers_with(LOADING),
            "GET /v1/models does not identify the engine yet: it is starting",
        ),
    ],
    ids=["no such pages", "a web page", "loading"],
)
async def test_reachable_but_no_engine(fleet: Fleet, models: Answer, health: Answer, begins: str) -> None:
    server = await fleet.engine(health=health)
    server.pages["/v1/models"] = models
    proxy = await fleet.proxy(server, refresh_seconds=0.1)
    await eventually(lambda: has_reason(proxy, server.url, begins))


async def test_this_proxy_itself(fleet: Fleet) -> None:
    engine, itself = await fleet.engine(), await fleet.engine()
    itself.pages["/v1/models"] = fails_with(508)
    proxy = await fleet.proxy(engine, itself, refresh_seconds=0.1)
    await eventually(lambda: has_reason(proxy, itself.url, "it is this proxy itself: remove"))
    [via] = {re.search(rb"\r\nvia: (.+)\r\n", request)[1] for request in engine.requests}  # type: ignore[index]
    for path in ("/v1/models", "/health", "/v1/chat/completions"):
        assert (await send(proxy.url, path, headers={"via": via.decode()})).status == 508


@pytest.mark.parametrize("path", ["/v1/models", "/props"])
async def test_rejected_key(fleet: Fleet, path: str) -> None:
    engine = await fleet.engine()
    engine.slots = 2
    engine.pages[path] = fails_with(401)
    proxy = await fleet.proxy(engine, refresh_seconds=0.1, backend_api_key="wrong")
    await eventually(lambda: has_reason(proxy, engine.url, "it rejects the proxy's key: check BACKEND_API_KEY"))


LOCKED = fails_with(401)
SECRET = "sk-0123456789abcdef"  # noqa: S105 - of these tests


@pytest.mark.parametrize("path", ["/v1/models", "/props"])
async def test_missing_key(fleet: Fleet, path: str) -> None:
    engine = await fleet.engine()
    engine.slots = 2
    engine.pages[path] = LOCKED
    proxy = await fleet.proxy(engine, refresh_seconds=0.1, api_keys=f"me:{SECRET}")
    await eventually(
        lambda: has_reason(proxy, engine.url, "it requires a key, and the proxy has none: set BACKEND_API_KEY")
    )
    assert await proxy.state(engine) == "down"


@pytest.mark.parametrize("keys", [{}, {"api_keys": f"me:{SECRET}", "forward_client_key": True}])
async def test_key_that_clients_may_have(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, keys: dict[str, object]
) -> None:
    engine = await fleet.engine(owner="another")
    engine.pages["/v1/models"] = LOCKED
    proxy = await fleet.proxy(engine, refresh_seconds=0.05, **keys)
    await eventually(lambda: engine.count("/v1/models") > 3)
    assert await proxy.state(engine) == "up"
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "requires a key, and the proxy has none" in warning
    assert "set BACKEND_API_KEY" in warning


async def test_private_authority_is_trusted_with_its_file(fleet: Fleet, certificate: tuple[Path, Path]) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    engine = await fleet.engine()
    server = await asyncio.get_running_loop().create_server(lambda: EngineConnection(engine), "127.0.0.1", 0, ssl=tls)
    fleet.stack.callback(server.close)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    assert Settings().backend_ca_file is None
    proxy = await fleet.proxy(url, backend_ca_file=str(certificate[0]))
    assert (await proxy.post()).status == 200
