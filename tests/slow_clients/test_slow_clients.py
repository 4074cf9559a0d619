"""A thousand deliberately slow clients must not delay other clients.

Their latency is compared with that of a second proxy on the same machine at the same time, which is not attacked. So
the cost of slowhttptest and of anything else counts on both sides.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from slow_clients.normal_client import Latencies, ask_for, p99
from support.program import Proxy, environment
from support.waiting import eventually

CONNECTIONS = 1000
A_SECOND = 300  # new connections
MOST_OF_THEM = CONNECTIONS * 0.95
MOST_TIMES_SLOWER = 2.0

# An engine without a bound, so that only limits of the proxy apply, and no request may be refused.
PATIENT = {"METRICS_CACHE_TTL_SECONDS": "60", "MAX_ALLOWED_REQUEST_QUEUE": "100000", "MAX_ALLOWED_DEFERRED": "100000"}

# Seconds, path, and slowhttptest's options. The first one is shorter: unfinished header sections end after 10 s.
ATTACKS = {
    "slow-headers": (15, "/v1/slow", ["-H", "-i", "3", "-x", "24", "-t", "GET"]),
    "slow-body": (25, "/v1/slow", ["-B", "-i", "5", "-s", "8192", "-x", "24", "-t", "POST"]),
    "slow-read": (25, "/v1/large", ["-X", "-w", "512", "-y", "1024", "-n", "2", "-z", "32", "-k", "1"]),
}


@pytest.mark.parametrize(("seconds", "path", "options"), ATTACKS.values(), ids=ATTACKS)
async def test_slow_clients_do_not_delay_others(
    seconds: int, path: str, options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = tmp_path / "attacked", tmp_path / "left-alone"
    for folder in folders:
        folder.mkdir()
    async with _engine() as url:
        with Proxy(folders[0], [url], **PATIENT) as proxy, Proxy(folders[1], [url], **PATIENT) as other:
            common = ["-c", str(CONNECTIONS), "-r", str(A_SECOND), "-l", str(seconds), "-u", proxy.url + path]
            async with _running("slowhttptest", *options, *common) as attack:
                # Opening them is ordinary load; the test is about open slow connections.
                began = time.monotonic()
                await eventually(lambda: _open_files(proxy) > MOST_OF_THEM, seconds)
                ramp = time.monotonic() - began
                attacked, alone = await ask_for(seconds - 1 - ramp, "/v1/normal", proxy.url, other.url)
                assert attack.returncode is None, "the attack was over too soon"
    with capfd.disabled():
        _report(options[0], alone, attacked)
    assert not alone.failures + attacked.failures
    for without, under in ((alone.kept, attacked.kept), (alone.fresh, attacked.fresh)):
        assert p99(under) < MOST_TIMES_SLOWER * p99(without)


@asynccontextmanager
async def _engine() -> AsyncIterator[str]:
    """The base URL of an engine."""
    async with _running(sys.executable, "-m", "slow_clients.engine") as engine:
        assert engine.stdout is not None
        yield (await engine.stdout.readline()).decode().strip()


@asynccontextmanager
async def _running(*command: str) -> AsyncIterator[Process]:
    """A process that ends with its block at the latest."""
    output = PIPE if command[0] == sys.executable else DEVNULL
    variables = environment(PYTHONPATH=os.pathsep.join(sys.path), TERM="dumb")
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=output, env=variables)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _open_files(proxy: Proxy) -> int:
    return sum(1 for _ in Path(f"/proc/{proxy.pid}/fd").iterdir())


def _report(attack: str, alone: Latencies, attacked: Latencies) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    print(f"\nslowhttptest {attack}: {CONNECTIONS} connections, limit of open files {limit}")  # noqa: T201
    for name, without, under in (
        ("one connection", alone.kept, attacked.kept),
        ("new connections", alone.fresh, attacked.fresh),
    ):
        figures = f"{p99(without) * 1000:.2f} ms without, {p99(under) * 1000:.2f} ms under attack"
        times = p99(under) / p99(without)
        print(f"  p99, {name}: {figures}: {times:.2f} times, {len(without)} and {len(under)} requests")  # noqa: T201
    print(f"  failed: {len(alone.failures)} without, {len(attacked.failures)} under attack")  # noqa: T201
