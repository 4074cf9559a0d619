"""Unreachable backends, and connections that end unexpectedly."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from faults.conftest import CHAT, OTHER
from inference_engine_proxy_server.config.settings import Settings
from support.engine import Engine, answers_with
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet


@pytest.mark.parametrize("path", [CHAT, OTHER])
async def test_bf02_host_that_drops_packets_costs_one_connect_timeout(fleet: Fleet, path: str) -> None:
    hole, other = await fleet.engine(), await fleet.engine(processing=5)
    proxy = await fleet.proxy(hole, other, backend_connect_timeout_seconds=0.4, backend_timeout_seconds=15)
    async with black_hole(hole):
        for _ in range(3):
            reply = await proxy.post(path)
            assert (reply.status, reply.headers["x-backend"]) == (200, other.url)
        assert await proxy.state(hole) == "down"
    assert await proxy.retries("backend_unreachable") == 1
    assert not hole.served


@contextlib.asynccontextmanager
async def black_hole(engine: Engine) -> AsyncIterator[None]:
    """Make ``engine`` unreachable: connection attempts are neither accepted nor refused."""
    await engine.go()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", engine.port))
        listener.listen(0)
        for _ in range(4):  # the kernel drops connections beyond a full accept queue
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield


class ResettingEngine(Engine):
    """Resets each new connection at once while the test says so."""

    is_sick = False

    def accepted(self, connection: EngineConnection) -> None:
        super().accepted(connection)
        if self.is_sick:
            asyncio.get_running_loop().call_soon(connection.reset)


@pytest.mark.parametrize(("path", "attempts"), [(CHAT, 2), (OTHER, 1)])
async def test_bf04_request_on_a_reset_connection_is_retried_on_one_other_backend(
    fleet: Fleet, path: str, attempts: int
) -> None:
    engines = [await fleet.add(ResettingEngine(answers_with(http_reply()))) for _ in range(3)]
    proxy = await fleet.proxy(*engines)
    for engine in engines:
        await proxy.becomes(engine, "up")
    for engine in engines:
        engine.is_sick = True

    reply = await proxy.post(path)

    assert (reply.status, reply.json["error"]["code"]) == (502, "backend_disconnected")
    states = [await proxy.state(engine) for engine in engines]
    assert sorted(states) == sorted(["down"] * attempts + ["up"] * (3 - attempts))
    assert await proxy.retries("backend_disconnected") == attempts - 1
    assert not any(engine.served for engine in engines)


async def test_bf04_clients_do_not_notice_a_backend_that_resets_connections(fleet: Fleet) -> None:
    resetting = await fleet.add(ResettingEngine(answers_with(http_reply())))
    well = await fleet.engine(processing=5)
    proxy = await fleet.proxy(resetting, well)
    await proxy.becomes(resetting, "up")
    resetting.is_sick = True
    assert [(await proxy.post()).headers["x-backend"] for _ in range(10)] == [well.url] * 10
    assert await proxy.retries("backend_disconnected") == 1


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow_faults)])
async def test_bf05_kept_connection_that_was_closed_meanwhile_is_not_used(fleet: Fleet, count: int) -> None:
    async def answers_and_closes(connection: EngineConnection) -> None:
        connection.send(http_reply())
        connection.finish()

    engine = await fleet.engine(answers_and_closes, owner="vllm")
    proxy = await fleet.proxy(engine)
    for _ in range(count):
        assert (await proxy.post(OTHER)).status == 200  # a path without retries
    assert len(engine.served) == count
    assert await proxy.metric("retries_total") == 0
    assert await proxy.state(engine) == "up"


@pytest.mark.parametrize("end", [EngineConnection.finish, EngineConnection.reset])
@pytest.mark.parametrize("path", [CHAT, OTHER])
async def test_bf06_request_sent_while_its_connection_closes_is_replayed_once(
    fleet: Fleet, end: object, path: str
) -> None:
    async def closes_on_second_request(connection: EngineConnection) -> None:
        connection.send(http_reply())
        await connection.first_bytes()
        assert callable(end)
        end(connection)
        raise ConnectionError("it does not read what came")

    engine = await fleet.engine(closes_on_second_request, owner="vllm")
    proxy = await fleet.proxy(engine)
    statuses = [(await proxy.post(path)).status for _ in range(2)]
    assert statuses == ([200, 200] if path == CHAT else [200, 502])
    assert len(engine.served) == (2 if path == CHAT else 1)  # each request answered once
    assert await proxy.retries("backend_disconnected") == (1 if path == CHAT else 0)
    assert await proxy.state(engine) == "up"


class UvicornEngine:
    """A server like vLLM's, which closes connections that are idle for ``idle_seconds``.

    Attributes:
        longest_pause_seconds: between two client requests on one connection.
    """

    def __init__(self, idle_seconds: int) -> None:
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            timeout_keep_alive=idle_seconds,
            lifespan="off",
            log_config=None,
            proxy_headers=False,  # otherwise the client address would not be that of the connection
        )
        self._host = uvicorn.Server(config)
        self._used_at: dict[int, float] = {}  # by the port of the peer
        self.longest_pause_seconds = 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Run the server; yields its URL."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.get_running_loop().create_task(self._host.serve(sockets=[listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                self._host.should_exit = True
                await serving

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            now, port = time.monotonic(), scope["client"][1]
            self.longest_pause_seconds = max(self.longest_pause_seconds, now - self._used_at.get(port, now))
            self._used_at[port] = now
        is_list = scope["path"] == "/v1/models"
        body = b'{"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}' if is_list else b"{}"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.slow_faults)])
async def test_bf07_idle_timeout_is_shorter_than_that_of_the_engine(fleet: Fleet, rounds: int) -> None:
    """The defaults are 5 s (engine) and 3 s (proxy); here 2 s and 0.5 s. Requests come around the engine's timeout."""
    assert 0 < Settings().backend_idle_connection_seconds <= 3
    engine = UvicornEngine(idle_seconds=2)
    url = await fleet.stack.enter_async_context(engine.running())
    proxy = await fleet.proxy(url, backend_idle_connection_seconds=0.5)

    async def ask_again_and_again(pause_seconds: float) -> None:
        for number in range(rounds):
            await asyncio.sleep(pause_seconds if number else 0)
            assert (await proxy.post(OTHER)).status == 200

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(ask_again_and_again(1.8 + number * 0.011))
    assert engine.longest_pause_seconds < 1.78
    assert await proxy.metric("retries_total") == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate chain with its key, for the name ``localhost`` only."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    openssl = shutil.which("openssl")
    assert openssl, "this test needs the program openssl"
    kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=test -nodes"
    files = ["-addext", "subjectAltName=DNS:localhost", "-out", str(chain), "-keyout", str(key)]
    subprocess.run([openssl, *kind.split(), *files], check=True, capture_output=True)
    return chain, key


@pytest.mark.parametrize(
    ("host", "is_trusted"), [("localhost", True), ("127.0.0.1", True), ("localhost", False)],
    ids=["good", "wrong host", "unknown issuer"],
)  # fmt: skip
async def test_bf47_certificate_of_a_backend_is_verified(
    fleet: Fleet, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, host: str, is_trusted: bool
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    engine = await fleet.engine()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EngineConnection(engine), "127.0.0.1", 0, ssl=tls)
    fleet.stack.callback(server.close)
    url = f"https://{host}:{server.sockets[0].getsockname()[1]}"

    proxy = await fleet.proxy(url)

    reply = await proxy.post()
    [detail] = (await proxy.health())["details"]
    if host == "localhost" and is_trusted:
        assert (reply.status, detail["state"]) == (200, "up")
    else:
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_backend_available")
        assert (detail["state"], detail["reason"]) == ("down", "it cannot be reached")
        assert not engine.requests
