"""Python driver for the two C programs: fast engines, and the client that puts load on a proxy."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxies.proxy import free_ports

__all__ = ["ENDLESS", "EVENT_PERIOD_US", "Engines", "Generator", "Load", "Report"]

EVENT_PERIOD_US = 20_000  # 50 tokens per second and stream
ENDLESS = 1_000_000  # tokens; more than any measurement lasts
_QUIET_SECONDS = 10.0
_STOP_SECONDS = 60.0

Report = dict[str, Any]  # the output of client.c


@dataclass(frozen=True, slots=True)
class Load:
    """The client's workload.

    Attributes:
        tokens: number of events per stream; 0 for replies without streaming. Each connection sends its next request
            after its reply.
        models: number of models that the requests name in turn.
        warm_up_seconds: time before the measurement; streams are opened in its first half.
    """

    connections: int
    body_bytes: int = 1_000
    tokens: int = 0
    models: int = 1
    warm_up_seconds: float = 0.5
    seconds: float = 2.0

    def total_seconds(self, pace: float = 1.0) -> float:
        """Total duration; ``pace`` scales the measured part."""
        return self.warm_up_seconds + pace * self.seconds


@dataclass(frozen=True, slots=True)
class Engines:
    """Running engines, all in one process."""

    ports: tuple[int, ...]

    def wait_until_quiet(self) -> None:
        """Wait until no stream is running; the proxy has to end the streams of clients that have left.

        Raises:
            RuntimeError: streams are still running after a long time.
        """
        deadline = time.monotonic() + _QUIET_SECONDS
        while streams := self._streams():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{streams} streams still run {_QUIET_SECONDS:.0f} s after their clients left")
            time.sleep(0.05)

    def _streams(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}/streams", timeout=10) as reply:
            return int(reply.read())


@dataclass(frozen=True, slots=True)
class Generator:
    """Starts engines and clients.

    Attributes:
        programs: folder with the compiled ``engine`` and ``client``.
        cores: the cores that both run on.
    """

    programs: Path
    cores: tuple[int, ...]

    @contextlib.contextmanager
    def engines(self, count: int = 2, *, models: int = 1, period_us: int = EVENT_PERIOD_US) -> Iterator[Engines]:
        """Start engines that serve all models and send an event on each stream every ``period_us``."""
        ports = free_ports(count)
        with subprocess.Popen(self._command("engine", period_us, models, *ports)) as process:
            try:
                yield Engines(ports)
            finally:
                process.terminate()

    def run(self, load: Load, port: int, pids: tuple[int, ...]) -> Report:
        """Run the client. Raises RuntimeError if a request failed, because the figures would be worthless."""
        sizes = [port, load.connections, load.body_bytes, load.tokens, load.models]
        command = self._command("client", *sizes, load.warm_up_seconds, load.seconds, *pids)
        limit = 3 * load.total_seconds() + _STOP_SECONDS
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"the client ended with {done.returncode}")
        report: Report = json.loads(done.stdout)
        if report["failed"]:
            raise RuntimeError(f"{report['failed']} requests failed: {done.stderr.strip()}")
        return report

    def _command(self, program: str, *arguments: float) -> list[str]:
        pinned = ["taskset", "--cpu-list", ",".join(map(str, self.cores))]
        return [*pinned, str(self.programs / program), *map(str, arguments)]
