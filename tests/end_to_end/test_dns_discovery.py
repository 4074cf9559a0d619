"""Backends come and go as a DNS server says, on real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import dns.rcode
import pytest

from support.certificate import Certificate, make_certificate
from support.dns_server import DnsServer
from support.engine import Engine, hangs
from support.fakes.engine import EngineConnection
from support.http_client import chat, send
from support.live_proxy import live_proxy
from support.ports import free_port
from support.program import Proxy, program
from support.running_proxy import RunningProxy
from support.waiting import eventually

NAME = ("engines.test.", "A")
ADMIN = {"Authorization": "Bearer operator-key"}
StartEngines = Callable[[int], Awaitable[list[Engine]]]


@pytest.fixture
async def start_engines() -> AsyncIterator[StartEngines]:
    """Starts engines on one port of 127.0.0.1, 127.0.0.2, ..."""
    async with AsyncExitStack() as stack:

        async def start(count: int) -> list[Engine]:
            engines, port = [Engine() for _ in range(count)], free_port()
            for number, engine in enumerate(engines, 1):
                engine.host, engine.port = f"127.0.0.{number}", port
                await stack.enter_async_context(engine)
            return engines

        yield start


@pytest.fixture
async def name_server() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


def url_of(engine: Engine, server: DnsServer, scheme: str = "dns+http") -> str:
    return f"{scheme}://engines.test:{engine.port}?server={server.address}"


async def has(proxy: RunningProxy, *engines: Engine) -> bool:
    health = await proxy.health()
    return set(health["available_backends"]) == {one.url for one in engines} and health["total_backends"] == len(
        engines
    )


@asynccontextmanager
async def load(proxy: RunningProxy) -> AsyncIterator[Counter[tuple[int, str]]]:
    """Requests all the time; yields their statuses and backends, counted."""
    counts: Counter[tuple[int, str]] = Counter()

    async def client() -> None:
        while True:
            reply = await proxy.post()
            counts[reply.status, reply.headers.get("x-backend", "")] += 1
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client()) for _ in range(4)]
        yield counts
        for one in clients:
            one.cancel()


async def test_no_request_fails_while_records_change_and_the_name_server_fails(
    start_engines: StartEngines, name_server: DnsServer
) -> None:
    one, two, three = await start_engines(3)
    name_server.records[NAME] = [one.host, two.host]
    async with live_proxy(url_of(one, name_server)) as proxy, load(proxy) as counts:
        await eventually(lambda: len(counts) == 2)
        for engines in ([two, three], [three], [three, one]):
            name_server.records[NAME] = [engine.host for engine in engines]
            await eventually(partial(has, proxy, *engines))
        name_server.rcode = dns.rcode.SERVFAIL
        await eventually(lambda: problem_of(proxy, "the name server reports an error"))
        name_server.rcode = dns.rcode.NXDOMAIN
        await eventually(lambda: problem_of(proxy, "the name does not exist"))
        assert await has(proxy, three, one)
        name_server.rcode = None
        await eventually(lambda: problem_of(proxy, None))
        assert {status for status, _ in counts} == {200}
    assert {backend for _, backend in counts} == {engine.url for engine in (one, two, three)}


async def problem_of(proxy: RunningProxy, expected: str | None) -> bool:
    [_, source] = (await proxy.health())["sources"]
    return bool(source["problem"] == expected)


async def test_proxy_without_any_backend_starts_and_uses_those_that_appear(
    start_engines: StartEngines, name_server: DnsServer
) -> None:
    [engine] = await start_engines(1)
    async with live_proxy(url_of(engine, name_server)) as proxy:
        refused = await proxy.post()
        assert (refused.status, refused.json["error"]["code"]) == (503, "no_backend_available")
        assert "retry-after" in refused.headers
        assert (await send(proxy.url, "/v1/models")).json["data"] == []
        assert (await send(proxy.url, "/v1/models/m")).status == 503
        assert (await send(proxy.url, "/readyz")).status == 503

        name_server.records[NAME] = [engine.host]
        await eventually(lambda: has(proxy, engine))
        assert (await proxy.post()).status == 200


async def test_engines_see_the_name_as_their_host(start_engines: StartEngines, name_server: DnsServer) -> None:
    [engine] = await start_engines(1)
    name_server.records[NAME] = [engine.host]
    async with live_proxy(url_of(engine, name_server)) as proxy:
        reply = await proxy.post()
        assert reply.headers["x-backend"] == engine.url
    assert f"\r\nhost: engines.test:{engine.port}\r\n".encode() in engine.served[-1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "engine", subject="DNS:engines.test")


class TlsEngine(Engine):
    """An engine with a certificate."""

    def __init__(self, certificate: Certificate) -> None:
        super().__init__()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.chain, certificate.key)

    async def __aenter__(self) -> Self:
        make = asyncio.get_running_loop().create_server
        self._server = await make(lambda: EngineConnection(self), self.host, 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self


async def test_certificate_must_be_for_the_name(name_server: DnsServer, certificate: Certificate) -> None:
    name_server.records |= {NAME: ["127.0.0.1"], ("other.test.", "A"): ["127.0.0.1"]}
    trusted = str(certificate.chain)
    async with TlsEngine(certificate) as engine:
        right = url_of(engine, name_server, "dns+https")
        async with live_proxy(right, backend_ca_file=trusted) as proxy:
            assert (await proxy.post()).status == 200
        async with live_proxy(right.replace("engines", "other"), backend_ca_file=trusted) as proxy:
            assert (await proxy.post()).status == 503
            [detail] = (await proxy.health())["details"]
            assert "certificate" in detail["reason"]


async def test_services_have_ports_tiers_and_weights(start_engines: StartEngines, name_server: DnsServer) -> None:
    first, second = await start_engines(2)
    name_server.records |= {
        ("_llm._tcp.test.", "SRV"): [f"1 5 {first.port} one.test.", f"2 5 {second.port} two.test."],
        ("one.test.", "A"): [first.host],
        ("two.test.", "A"): [second.host],
    }
    url = f"srv+http://_llm._tcp.test?server={name_server.address}"
    async with live_proxy(url, admin_key="operator-key") as proxy:
        rows = (await send(proxy.url, "/admin/backends", headers=ADMIN)).json["backends"]
        assert [(row["url"], row["tier"], row["weight"]) for row in rows] == [(first.url, 1, 1), (second.url, 2, 1)]
        assert {(await proxy.post()).headers["x-backend"] for _ in range(6)} == {first.url}


async def test_request_on_a_backend_that_leaves_and_then_freezes_moves_to_another(
    start_engines: StartEngines, name_server: DnsServer
) -> None:
    leaving, staying = await start_engines(2)
    leaving.answer = hangs
    name_server.records[NAME] = [leaving.host]
    async with live_proxy(url_of(leaving, name_server)) as proxy:
        request = asyncio.get_running_loop().create_task(proxy.post())
        await eventually(lambda: leaving.served)
        name_server.records[NAME] = [staying.host]
        await eventually(lambda: has(proxy, staying))
        assert not request.done()
        leaving.health = hangs
        assert (await request).headers["x-backend"] == staying.url


def fleet_of(*entries: str) -> str:
    return f"backends: [{', '.join(entries)}]\n"


async def test_changed_fleet_file_and_changed_records_leave_each_other_alone(
    start_engines: StartEngines, name_server: DnsServer, tmp_path: Path
) -> None:
    one, two, three = await start_engines(3)
    name_server.records[NAME] = [one.host]
    file = tmp_path / "fleet.yaml"
    found = f"{{url: '{url_of(one, name_server)}', name: gpu, weight: 1}}"
    file.write_text(fleet_of(found, f"{{url: {two.url}}}"))
    async with program(tmp_path / "proxy", BACKENDS="", CONFIG_FILE=str(file), ADMIN_KEY="operator-key") as proxy:
        assert await has(proxy, one, two)
        change(proxy, file, fleet_of(found.replace("weight: 1", "weight: 3"), f"{{url: {three.url}}}"))
        await eventually(lambda: has(proxy, one, three))
        assert (await rows_of(proxy))[one.url] == ("gpu-127-0-0-1", 3)

        name_server.records[NAME] = [two.host]
        await eventually(lambda: has(proxy, two, three))
        assert (await rows_of(proxy))[two.url] == ("gpu-127-0-0-2", 3)

        name_server.is_silent = True  # a name that stays keeps its backends; a name that is removed takes them along
        change(proxy, file, fleet_of(found.replace("weight: 1", "weight: 4"), f"{{url: {three.url}}}"))
        await eventually(lambda: weighs(proxy, two, 4))
        change(proxy, file, fleet_of(f"{{url: {three.url}}}"))
        await eventually(lambda: has(proxy, three))

        name_server.is_silent = False
        change(proxy, file, fleet_of(found, f"{{url: {three.url}}}"))
        await eventually(lambda: has(proxy, two, three))


def change(proxy: Proxy, file: Path, text: str) -> None:
    file.write_text(text)
    proxy.signal(signal.SIGHUP)


async def rows_of(proxy: Proxy) -> dict[str, tuple[str, float]]:
    rows = (await send(proxy.url, "/admin/backends", headers=ADMIN)).json["backends"]
    return {row["url"]: (row["name"], row["weight"]) for row in rows}


async def weighs(proxy: Proxy, engine: Engine, weight: float) -> bool:
    return (await rows_of(proxy))[engine.url][1] == weight


async def test_each_worker_looks_the_name_up_and_a_drained_backend_stays_drained_in_a_new_worker(
    start_engines: StartEngines, name_server: DnsServer, tmp_path: Path
) -> None:
    one, two, three = await start_engines(3)
    name_server.records[NAME] = [one.host, two.host]
    settings = {"WORKERS": "2", "ADMIN_KEY": "operator-key"}
    async with program(tmp_path, url_of(one, name_server), **settings) as proxy:
        assert await proxy.metric("source_backends") == 4
        path = f"/admin/backends/{one.url}/drain"
        await send(proxy.url, path, method="POST", headers=ADMIN)
        os.kill(proxy.workers[0], signal.SIGKILL)
        await eventually(lambda: "serves again" in proxy.events)
        for _ in range(12):
            assert (await send(proxy.url, "/v1/completions", chat())).headers["x-backend"] == two.url

        name_server.records[NAME] = [two.host, three.host]
        await eventually(lambda: is_joined_everywhere(proxy, three, 2))
        name_server.records[NAME] = [one.host, two.host]  # it has left in the meantime, so it is not drained any more
        await eventually(lambda: is_joined_everywhere(proxy, one, 2))
        assert await proxy.metric("backend_draining") == 0


async def is_joined_everywhere(proxy: Proxy, engine: Engine, workers: int) -> bool:
    return await proxy.metric("backend_ready", backend=engine.url) == workers
