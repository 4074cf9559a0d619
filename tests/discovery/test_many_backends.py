"""What 256 backends from DNS cost while there are no requests.

scripts/test.sh discovery -k cost -s     prints the figures
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.dnsmasq import Dnsmasq
from discovery.many_engines import addresses
from support.ports import free_port
from support.program import Proxy
from support.waiting import eventually

BACKENDS, MODELS = 256, 50
INTERVAL_SECONDS = 3  # between two polls of a backend, by default
TTL_SECONDS = 5  # Kubernetes' default
INTERVALS = 5
MOST_OF_A_CORE = 0.05


@pytest.fixture
def port() -> Iterator[int]:
    """The port of all backends."""
    chosen = free_port()
    command = [sys.executable, "-m", "discovery.many_engines", "llamacpp", str(chosen), str(BACKENDS), str(MODELS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield chosen
        process.kill()


async def test_256_backends_cost_less_than_a_twentieth_of_a_core(tmp_path: Path, port: int) -> None:
    with Dnsmasq(tmp_path, {"engines.test": addresses(BACKENDS)}, ttl=TTL_SECONDS) as dnsmasq:
        lookup = f"dns+http://engines.test:{port}?server={dnsmasq.address}"
        with Proxy(tmp_path / "proxy", [lookup]) as proxy:
            await eventually(lambda: are_up(proxy), 60)
            await asyncio.sleep(2 * INTERVAL_SECONDS)
            shares = [await share_of_a_core(proxy) for _ in range(INTERVALS)]
    sys.stderr.write(f"\nshares of a core, for each interval of {INTERVAL_SECONDS} s: {shares}\n")
    assert sorted(shares)[len(shares) // 2] < MOST_OF_A_CORE


async def are_up(proxy: Proxy) -> bool:
    return len(await proxy.available()) == BACKENDS


async def share_of_a_core(proxy: Proxy) -> float:
    """Of one interval."""
    used, began = proxy.cpu_seconds, time.monotonic()
    await asyncio.sleep(INTERVAL_SECONDS)
    return round((proxy.cpu_seconds - used) / (time.monotonic() - began), 4)
