"""The program as a service: started from its installed version, with a notify socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from support.program import environment
from support.waiting import eventually
from systemd.notify_socket import NotifySocket
from systemd.versions import Versions

__all__ = ["Service", "lives", "service"]

_START_SECONDS = 60.0


def lives(pid: int) -> bool:
    """Whether a process has not ended; whether its parent knows that is of no importance."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Service:
    """The running service.

    Attributes:
        port: of clients.
        main_pid: of the process that is the service, as the notify socket was told.
        log: its standard error, as a file.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.versions = Versions(folder / "versions")
        self.notify = NotifySocket(folder / "notify")
        self.port = 0
        self.log = folder / "stderr"
        self._folder = folder
        self._process: subprocess.Popen[bytes]

    def start(self, launcher: Sequence[str], variables: dict[str, str]) -> None:
        """Start it, by way of ``launcher`` if that is not empty."""
        with self.log.open("wb") as stderr, (self._folder / "stdout").open("wb") as stdout:
            self._process = subprocess.Popen(
                [*launcher, str(self.versions.program), "serve"],
                cwd=self._folder,
                env=environment(NOTIFY_SOCKET=self.notify.path, **variables),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    async def serves(self) -> None:
        """Wait until it says so."""
        await eventually(lambda: self.notify.has_heard(READY="1"), _START_SECONDS)
        self.port = int(re.findall(r"listening on http://\S+:(\d+)$", self.events, re.MULTILINE)[-1])

    @property
    def events(self) -> str:
        return self.log.read_text()

    @property
    def main_pid(self) -> int:
        pids = [int(one["MAINPID"]) for one in self.notify.listen() if "MAINPID" in one]
        return pids[-1] if pids else self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its main process."""
        os.kill(self.main_pid, number)

    async def upgrade(self) -> int:
        """Ask for an upgrade, and wait until the new program has taken over; returns its process id."""
        before = self.main_pid
        self.signal(signal.SIGUSR2)
        await eventually(lambda: self.main_pid != before, _START_SECONDS)
        return self.main_pid

    def kill(self) -> None:
        """Kill all processes; all are in one session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@asynccontextmanager
async def service(folder: Path, *, launcher: Sequence[str] = (), **variables: str) -> AsyncIterator[Service]:
    """The service in version 1.0.0; killed at the end."""
    one = Service(folder)
    one.versions.install("1.0.0")
    try:
        await asyncio.to_thread(one.start, launcher, variables)
        await one.serves()
        yield one
    finally:
        await asyncio.to_thread(one.kill)
        one.notify.close()
