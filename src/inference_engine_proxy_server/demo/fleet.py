"""Runs two llama.cpp servers as child processes that cannot outlive this process.

Each child has a pipe as its standard input and ends when that pipe ends. The operating system closes the other end when
this process ends in any way, including ``SIGKILL``. The children have their own sessions, so that Ctrl-C in a terminal
reaches only this process: first the proxy stops, and then its servers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inference_engine_proxy_server.demo.errors import INSTALL_HINT, DemoUnavailable
from inference_engine_proxy_server.demo.model import demo_model

__all__ = ["MODEL_NAME", "SERVER_COUNT", "curl_line", "demo_fleet", "running_servers"]

MODEL_NAME = "gemma-3-270m"
SERVER_COUNT = 2
_READY_DEADLINE_SECONDS = 120.0  # loading takes 1.5 s from a warm disk; leaves time for slow disks
_PROGRESS_SECONDS = 5.0
_STOP_SECONDS = 5.0  # a child that is still loading is killed; it has nothing to save
_QUOTED_LINES = 3


@contextmanager
def demo_fleet(report: Callable[[str], None]) -> Iterator[tuple[str, ...]]:
    """Run ``SERVER_COUNT`` llama.cpp servers for as long as the ``with`` block lasts; yields their base URLs.

    Args:
        report: called with one printable line for each step that takes seconds.

    Raises:
        DemoUnavailable: the extra is not installed, its model is damaged, or a server did not start.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise DemoUnavailable(f"the demo's llama.cpp is not installed: {INSTALL_HINT}")
    with running_servers(demo_model(report), report) as urls:
        yield urls


@contextmanager
def running_servers(model: Path, report: Callable[[str], None]) -> Iterator[tuple[str, ...]]:
    """The same with a given model file."""
    servers: list[_Server] = []
    try:
        report(f"loading {MODEL_NAME} into {SERVER_COUNT} llama.cpp servers on the CPU ...")
        for _ in range(SERVER_COUNT):
            servers.append(_Server(model))  # noqa: PERF401 - a failure must find the servers that have started
        yield _wait_until_ready(servers, report)
    finally:
        for server in servers:
            server.begin_shutdown()
        for server in servers:
            server.reap()


def curl_line(base_url: str) -> str:
    """A shell command that streams a chat completion from ``base_url`` with ``curl``."""
    request = {
        "model": MODEL_NAME,
        "stream": True,
        "max_tokens": 60,
        # The model continues text and is not trained to answer.
        "messages": [{"role": "user", "content": "A computer network is"}],
    }
    address = shlex.quote(f"{base_url.rstrip('/')}/v1/chat/completions")
    return f"curl -N {address} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(request))}"


class _Server:
    """One child process, which writes its address to its standard output when it is ready."""

    def __init__(self, model: Path) -> None:
        # A file, because nothing reads the log, and a full pipe would block the engine.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `reap`
        command = [sys.executable, "-P", str(Path(__file__).with_name("engine.py")), str(model), MODEL_NAME]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [*command, str(_threads())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise DemoUnavailable(f"cannot start a demo server: {error.strerror}") from error
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101
        self._lifeline = self._process.stdin
        self.announcement = self._process.stdout

    def address(self) -> str:
        """Its base URL; blocks unless ``announcement`` is readable.

        Raises:
            DemoUnavailable: the process has ended.
        """
        line = self.announcement.readline()
        if line:
            return line.decode().strip()
        status = self._process.wait()
        reason = f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"
        raise DemoUnavailable(f"a demo server did not start ({reason}): {self._last_log_lines()}")

    def begin_shutdown(self) -> None:
        """Tell the process to end, without waiting."""
        self._lifeline.close()

    def reap(self) -> None:
        """Wait until the process has ended, and kill it if it takes too long."""
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.announcement.close()
        self._log.close()

    def _last_log_lines(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return " | ".join([line.strip() for line in lines if line.strip()][-_QUOTED_LINES:])


def _wait_until_ready(servers: Sequence[_Server], report: Callable[[str], None]) -> tuple[str, ...]:
    started = time.monotonic()
    addresses: list[str] = []
    with selectors.DefaultSelector() as selector:
        for server in servers:
            selector.register(server.announcement, selectors.EVENT_READ, server)
        while len(addresses) < len(servers):
            announced = selector.select(_PROGRESS_SECONDS)
            for key, _ in announced:
                selector.unregister(key.fileobj)
                addresses.append(key.data.address())
            seconds = time.monotonic() - started
            report(f"{len(addresses)}/{len(servers)} ready after {seconds:.1f} s")
            if not announced and seconds > _READY_DEADLINE_SECONDS:
                raise DemoUnavailable(f"the demo servers were not ready within {_READY_DEADLINE_SECONDS:.0f} s")
    return tuple(addresses)


def _threads() -> int:
    """Threads of each server; together they use all CPUs that this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // SERVER_COUNT)
