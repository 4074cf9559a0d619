"""Proxy processes: start them, wait until they serve, and end them with all their children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proxies.proxy import Proxy, Site

__all__ = ["ProxyProcess", "is_answering", "running", "spawned"]

_BODY = b'{"model":"m","messages":[{"role":"user","content":"Hello"}],"max_tokens":1}'
_START_SECONDS = 90.0  # LiteLLM's imports take long when its files are not in the page cache


@dataclass(frozen=True, slots=True)
class ProxyProcess:
    """A started proxy."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def pids(self) -> tuple[int, ...]:
        """The process and all its descendants."""
        return tuple(_family(self.process.pid))

    @property
    def cpu_seconds(self) -> float:
        """User and system time of the process and all its descendants so far."""
        ticks = 0
        for pid in self.pids:
            with contextlib.suppress(
                FileNotFoundError, ProcessLookupError
            ):  # it has ended, and counts as a child of its parent
                # man 5 proc_pid_stat; the second field may contain blanks and brackets
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
        return ticks / os.sysconf("SC_CLK_TCK")

    @property
    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def spawned(proxy: Proxy, site: Site, cores: Iterable[int] | None = None) -> Iterator[ProxyProcess]:
    """Start the proxy's process, restricted to ``cores`` if given; it may not listen yet.

    Raises:
        RuntimeError: the proxy is not installed.
    """
    pinned = [] if cores is None else ["taskset", "--cpu-list", ",".join(map(str, cores))]
    log = site.folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*pinned, *proxy.command(site)],
            cwd=site.folder,
            env=dict(os.environ) | proxy.settings(site),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that Ctrl-C reaches only the benchmark, which ends all processes
        )
    try:
        yield ProxyProcess(process, site.port, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # including its workers; they have nothing to save
        process.wait()


@contextlib.contextmanager
def running(proxy: Proxy, site: Site, cores: Iterable[int] | None = None) -> Iterator[ProxyProcess]:
    """A proxy that has answered a request.

    Raises:
        RuntimeError: the proxy did not start; the message contains the end of its log.
    """
    with spawned(proxy, site, cores) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not is_answering(site.port):
            if process.has_ended or time.monotonic() > deadline:
                raise RuntimeError(f"{proxy.program} did not start: {process.log_end}")
            time.sleep(0.1)
        yield process


def is_answering(port: int) -> bool:
    """Whether a request for the model ``m`` is answered within five seconds."""
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(address, _BODY, {"Content-Type": "application/json"})
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=5):
        return True
    return False


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            for child in children.read_text().split():
                yield from _family(int(child))
