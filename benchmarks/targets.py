"""The proxies that are measured: each one process on one core, as its own documentation sets it up for two engines."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Bench", "Target", "free_port", "running"]

_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What all targets have in common.

    Attributes:
        folder: an empty one for files of the targets.
        peers: where the programs of Python packages are, such as ``vllm-router``.
        engines: ports of the two engines on 127.0.0.1.
        core: the one that every target gets for itself.
    """

    folder: Path
    peers: Path
    engines: tuple[int, int]
    core: int

    @property
    def engine_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.engines]


@dataclass(frozen=True, slots=True)
class Target:
    """A running proxy."""

    name: str
    port: int
    pids: tuple[int, ...]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _ours(bench: Bench, port: int) -> tuple[list[str], dict[str, str]]:
    """As installed, with every default: access log, metrics and all limits are on."""
    settings = {"PORT": str(port), "BACKENDS": ",".join(bench.engine_urls)}
    return [sys.executable, "-m", "inference_engine_proxy_server", "serve"], settings


def _vllm_router(bench: Bench, port: int) -> tuple[list[str], dict[str, str]]:
    """Its policy that is nearest to ours; without the limit of 256 concurrent requests that it has by default."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    options += ["--policy", "power_of_two", "--log-level", "error", "--max-concurrent-requests", "20000"]
    return [str(bench.peers / "vllm-router"), "--worker-urls", *bench.engine_urls, *options], {}


def _nginx(bench: Bench, port: int) -> tuple[list[str], dict[str, str]]:
    config = Path(__file__).with_name("nginx.conf").read_text()
    values = {"FOLDER": bench.folder, "PORT": port, "ENGINE_1": bench.engines[0], "ENGINE_2": bench.engines[1]}
    for name, value in values.items():
        config = config.replace(f"@{name}@", str(value))
    file = bench.folder / "nginx.conf"
    file.write_text(config)
    return ["nginx", "-p", str(bench.folder), "-c", str(file)], {}


_COMMANDS = {"inference-proxy": _ours, "vllm-router": _vllm_router, "nginx": _nginx}


@contextlib.contextmanager
def running(bench: Bench) -> Iterator[list[Target]]:
    """All targets that are installed here, ours first; they wait idle while another one is measured.

    Raises:
        RuntimeError: one did not start; the message has its log.
    """
    with contextlib.ExitStack() as stack:
        names = [name for name in _COMMANDS if name != "nginx" or shutil.which("nginx")]
        yield [stack.enter_context(_started(name, bench)) for name in names]


@contextlib.contextmanager
def _started(name: str, bench: Bench) -> Iterator[Target]:
    port = free_port()
    command, settings = _COMMANDS[name](bench, port)
    log = bench.folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(bench.core), *command],
            cwd=bench.folder,
            env=dict(os.environ) | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_it_answers(name, port, process, log)
        yield Target(name, port, tuple(_process_and_children(process.pid)))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{name} did not start: {log.read_text(errors='replace')}")


def _process_and_children(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _process_and_children(int(child))
