"""Ways to the server: slow ones, TLS, users with few permissions; and a proxy that starts while there is none."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared_state.replicas import Answers, Load, replicas, say, shown
from support.certificate import make_certificate
from support.engine import Engine
from support.ports import free_port
from support.program import run_command
from support.redis_server import RedisServer
from support.waiting import eventually

DOCS = Path(__file__).parents[2] / "docs"
LIMIT, RATE = 1200, 120.0
[PERMISSIONS] = re.findall(r"^user proxy on >PASSWORD (.*)$", (DOCS / "shared-state.md").read_text(), re.MULTILINE)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(Answers(10), owner="vllm") as engine:
        yield engine


@asynccontextmanager
async def delayed(port: int, seconds: float) -> AsyncIterator[int]:
    """A port that leads to ``port``; each block takes ``seconds`` more."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while block := await reader.read(65536):
                await asyncio.sleep(seconds)
                writer.write(block)
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, onward[1]), copy(onward[0], writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


async def test_a_slow_server_delays_no_request(tmp_path: Path, engine: Engine, server: RedisServer) -> None:
    limits = f"requests_per_minute: {LIMIT}"
    async with (
        delayed(server.port, 0.1) as port,
        replicas(tmp_path, engine, f"redis://127.0.0.1:{port}", limits) as proxies,
    ):
        load = Load(proxies, RATE)
        await load.run(20)
    assert set(load.statuses) == {200, 429}
    say(f"the server answers after 200 ms: half of the requests within {load.latency(0.5) * 1000:.0f} ms")
    assert load.latency(0.5) < 0.1
    expected = LIMIT * (1 + load.seconds / 60)
    assert shown("admitted with a slow server", load.count(200), expected) < 0.1


async def test_a_replica_that_starts_without_a_server_has_the_whole_limit_until_it_finds_one(
    tmp_path: Path, engine: Engine
) -> None:
    limit = 60
    with RedisServer(tmp_path / "redis") as server:
        server.kill()
        async with replicas(tmp_path, engine, server.url, f"requests_per_minute: {limit}", 1, members=0) as proxies:
            load = Load(proxies, 40)
            await load.run(3)
            assert limit <= load.count(200) <= limit + 5
            server.start()

            async def is_shared() -> bool:
                return bool((await proxies[0].health())["shared_state"]["available"])

            await eventually(is_shared)
            before = load.count(200)
            await load.run(3)
            assert load.count(200) - before <= 3 / 60 * limit + 4
    assert set(load.statuses) == {200, 429}


async def test_tls_and_a_user_with_few_permissions_are_enough(tmp_path: Path, engine: Engine) -> None:
    certificate, port = make_certificate(tmp_path, "127.0.0.1"), free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate.chain), "--tls-key-file", str(certificate.key)]
    acl = tmp_path / "users.acl"
    acl.write_text(f"user default on nopass ~* &* +@all\nuser proxy on >secret-word {PERMISSIONS}\n")
    options = [*tls, "--tls-ca-cert-file", str(certificate.chain), "--tls-auth-clients", "no", "--aclfile", str(acl)]
    with RedisServer(tmp_path / "redis", *options):
        url = f"rediss://proxy:secret-word@127.0.0.1:{port}/0?ssl_ca_certs={certificate.chain}"
        limits = "requests_per_minute: 60, tokens_per_minute: 6000, concurrent_requests: 9, tokens_per_day: 1000000"
        async with replicas(tmp_path, engine, url, limits, 2, 2) as proxies:
            load = Load(proxies, 50, changes=False)
            await load.run(4)
            assert all("secret-word" not in proxy.events for proxy in proxies)
            assert all("cannot be used" not in proxy.events for proxy in proxies)
            health = [(await proxy.health())["shared_state"] for proxy in proxies]
    assert shown("admitted over TLS", load.count(200), 60 + load.seconds) < 0.1
    assert [one["replicas"] for one in health] == [2, 2]


def test_the_doctor_says_what_is_wrong_with_the_server(tmp_path: Path) -> None:
    def examined(url: str) -> str:
        return run_command(tmp_path, "doctor", BACKENDS="http://127.0.0.1:1", STATE_URL=url).stdout

    (tmp_path / "acl").write_text("user default on nopass ~* &* +@all\nuser few on >word ~other:* &* +@all\n")
    with RedisServer(tmp_path / "redis", "--aclfile", str(tmp_path / "acl")) as server:
        assert "[state_" not in examined(server.url)
        assert "[state_unreachable]" in examined(f"redis://:wrong@127.0.0.1:{server.port}/0")
        refused = examined(f"redis://few:word@127.0.0.1:{server.port}")
        assert "[state_refuses]" in refused
        assert "inference-proxy:*" in refused
        began = time.monotonic()
        server.freeze()
        assert "[state_unreachable]" in examined(server.url)
        server.thaw()
        assert time.monotonic() - began < 20
