"""The program under test, started as a user starts it, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from end_to_end.http_client import send
from end_to_end.waiting import eventually

__all__ = ["AccessLine", "Proxy", "environment"]

_LISTENING = re.compile(r'listening on (https?://[^\s"]+)(?:"})?$', re.MULTILINE)
_ACCESS_LINE = re.compile(
    r'\S+Z (?P<client>\S+) "(?P<method>\S+) (?P<path>\S+)" (?P<status>\d+) (?P<outcome>\w+) backend=(?P<backend>\S+) '
    r"model=(?:\S+) first_byte=(?:\S+) seconds=[\d.]+ bytes=\d+ id=(?P<id>\S+)"
)
_START_SECONDS = _STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class AccessLine:
    """One line of the access log; ``backend`` is ``-`` where none was asked."""

    method: str
    path: str
    status: int
    outcome: str
    backend: str
    request_id: str


def environment(**settings: str) -> dict[str, str]:
    """An environment with nothing in it but what Python and the measuring of coverage need, and ``settings``."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "PATH", "COV"))}
    return kept | settings


class Proxy:
    """One proxy process, which listens when the constructor returns.

    Args:
        folder: an empty one, to run in.
        backends: base URLs.
        settings: further variables.
    """

    def __init__(self, folder: Path, backends: Iterable[str], **settings: str) -> None:
        self._stdout = folder / "stdout"
        self._stderr = folder / "stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "inference_engine_proxy_server", "serve"],
                cwd=folder,
                env=environment(**{"PORT": "0", "BACKENDS": ",".join(backends)} | settings),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        try:
            self.url = self._wait_for_address()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """Processes that it has made and that live, in no order."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    @property
    def events(self) -> str:
        """What it has written to standard error."""
        return self._stderr.read_text()

    @property
    def access_lines(self) -> list[AccessLine]:
        """What it has written to standard output; every line must be one of the access log."""
        matches = []
        for line in self._stdout.read_text().splitlines():
            match = _ACCESS_LINE.fullmatch(line)
            assert match, f"not an access line: {line}"
            matches.append(match)
        return [
            AccessLine(
                found["method"], found["path"], int(found["status"]), found["outcome"], found["backend"], found["id"]
            )
            for found in matches
        ]

    async def health(self) -> dict[str, Any]:
        """Its ``/health``, with the backends' details by base URL."""
        reply = await send(self.url, "/health")
        assert reply.status == 200
        health: dict[str, Any] = reply.json
        return health | {"details": {one["backend"]: one for one in health["details"]}}

    async def available(self) -> set[str]:
        """Base URLs of the backends that it sends requests to."""
        return set((await self.health())["available_backends"])

    async def in_flight(self) -> int:
        """Requests that it holds on all backends together."""
        return sum(int(one["requests_in_flight"]) for one in (await self.health())["details"].values())

    def signal_all(self, number: signal.Signals) -> None:
        """As a terminal does, or systemd: to every process of it."""
        os.killpg(self.pid, number)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait until it has ended by itself; gives the exit code."""
        await eventually(lambda: self._process.poll() is not None)
        return self._process.returncode

    def stop(self) -> None:
        """Stop it as an operator does; it must end well, and nothing unexpected may have happened to it."""
        try:
            self.signal(signal.SIGTERM)  # does nothing if it has ended
            assert self._process.wait(_STOP_SECONDS) == 0, self.events
            assert "Traceback" not in self.events, self.events
        finally:
            self._process.kill()
            self._process.wait()

    def connections_to(self, port: int) -> int:
        """How many TCP connections to ``port`` of 127.0.0.1 this process has open."""
        inodes = set()
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                inodes.update(re.findall(r"socket:\[(\d+)\]", str(entry.readlink())))
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        remote = f"0100007F:{port:04X}"
        return sum(row[2] == remote and row[9] in inodes for row in rows)

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while not (found := _LISTENING.search(self.events)):
            assert self._process.poll() is None, f"it ended: {self.events}"
            assert time.monotonic() < deadline, f"it does not listen: {self.events}"
            time.sleep(0.01)
        return found[1]
