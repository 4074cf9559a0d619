"""The program in its own process, and observations of it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from inference_engine_proxy_server import cli
from support.running_proxy import Addressed, RunningProxy
from support.waiting import eventually

__all__ = [
    "AccessLine",
    "Command",
    "FreshProxy",
    "Proxy",
    "environment",
    "fresh_program",
    "program",
    "run_command",
    "started",
]

_LISTENING = re.compile(r'listening on (https?://[^\s"]+)(?:"})?$', re.MULTILINE)
_ACCESS_LINE = re.compile(
    r'\S+Z (?P<client>\S+) "(?P<method>\S+) (?P<path>\S+)" (?P<status>\d+) (?P<outcome>\w+) backend=(?P<backend>\S+) '
    r"model=(?:\S+) first_byte=(?:\S+) seconds=[\d.]+ bytes=\d+ id=(?P<id>\S+)(?: [a-z_]+=\S+)*"
)
_START_SECONDS = _STOP_SECONDS = 60.0
_COMMAND_SECONDS = 60.0

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["inference_engine_proxy_server.server", __name__])


@dataclass(frozen=True, slots=True)
class AccessLine:
    """One line of the access log; ``backend`` is ``-`` if the request reached none."""

    method: str
    path: str
    status: int
    outcome: str
    backend: str
    request_id: str


def environment(**settings: str) -> dict[str, str]:
    """An environment with ``settings`` and the variables that Python and coverage need, nothing else."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "PATH", "COV"))}
    return kept | settings


def run_command(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``inference-proxy ARGUMENTS`` in ``folder`` to its end, with only ``settings`` in its environment."""
    process = _start(arguments, folder, settings, is_fresh=False)
    try:
        code = process.wait(_COMMAND_SECONDS)
    finally:
        process.kill()
        process.wait()
    stdout, stderr = (_output(folder, number).read_text() for number in (1, 2))
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)


class _ForkedProgram:
    """A process forked from one that has imported the program; used like ``subprocess.Popen``.

    A start takes a tenth of the time that a fresh interpreter needs for all imports.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        self._process = _FORKSERVER.Process(target=_run, args=(tuple(arguments), folder, variables), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("inference-proxy", timeout or 0.0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _start(
    arguments: Sequence[str], folder: Path, settings: Mapping[str, str], *, is_fresh: bool
) -> _ForkedProgram | subprocess.Popen[bytes]:
    """The program in its own session, with its output in files of ``folder``."""
    variables = environment(**settings)
    if not is_fresh and not any(name.startswith("COVERAGE_PROCESS") for name in variables):
        for number in (1, 2):
            _output(folder, number).write_bytes(b"")  # not left to the process: output of a previous one must be gone
        return _ForkedProgram(arguments, folder, variables)
    with _output(folder, 1).open("wb") as stdout, _output(folder, 2).open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "inference_engine_proxy_server", *arguments],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def _output(folder: Path, number: int) -> Path:
    return folder / {1: "stdout", 2: "stderr"}[number]


def _run(arguments: tuple[str, ...], folder: Path, variables: Mapping[str, str]) -> NoReturn:
    """The work of the forked process."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, opened in (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(_output(folder, 1), os.O_WRONLY)),
        (2, os.open(_output(folder, 2), os.O_WRONLY)),
    ):
        os.dup2(opened, number)
        os.close(opened)
    # As a fresh interpreter creates them for files.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - open until the end
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    sys.exit(cli.main(arguments))


class Command:
    """``inference-proxy ARGUMENTS`` in the background, with only ``settings`` in its environment; killed at the end."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        folder.mkdir(exist_ok=True)
        self._stderr = _output(folder, 2)
        self._process = _start(arguments, folder, settings, is_fresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def events(self) -> str:
        """Its standard error."""
        return self._stderr.read_text()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait until it has ended; returns the exit code."""
        await eventually(lambda: self._process.poll() is not None)
        return self._process.wait()


class Proxy(RunningProxy):
    """A proxy process, which listens when the constructor returns.

    Args:
        folder: its working directory; created if missing.
        backends: base URLs.
        settings: further variables; without ``DRAIN_GRACE_SECONDS`` there is no grace period.
    """

    _is_fresh = False

    def __init__(self, folder: Path, backends: Iterable[str], **settings: str) -> None:
        self._stdout, self._stderr = _output(folder, 1), _output(folder, 2)
        folder.mkdir(exist_ok=True)
        usual = {"PORT": "0", "BACKENDS": ",".join(backends), "DRAIN_GRACE_SECONDS": "0"}
        self._process = _start(["serve"], folder, usual | settings, is_fresh=self._is_fresh)
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
        """Its living child processes, in no order."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    @property
    def cpu_seconds(self) -> float:
        """The CPU seconds that its first process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def events(self) -> str:
        """Its standard error."""
        return self._stderr.read_text()

    @property
    def access_lines(self) -> list[AccessLine]:
        """The lines of its standard output; each must be an access log line."""
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

    async def available(self) -> set[str]:
        """Base URLs of the backends that it sends requests to."""
        return set((await self.health())["available_backends"])

    async def in_flight(self) -> int:
        """Number of its requests on all backends."""
        return sum(int(one["requests_in_flight"]) for one in (await self.details()).values())

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all its processes, as a terminal or systemd does."""
        os.killpg(self.pid, number)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait until it has ended by itself; returns the exit code."""
        await eventually(lambda: self._process.poll() is not None)
        return self._process.wait()

    def stop(self) -> None:
        """Stop it as an operator does; it must exit with code 0 and have logged nothing unexpected."""
        try:
            self.signal(signal.SIGTERM)  # no effect if it has ended
            assert self._process.wait(_STOP_SECONDS) == 0, self.events
            assert "Traceback" not in self.events, self.events
        finally:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kill it if it has not ended."""
        self._process.kill()
        self._process.wait()

    def connections_to(self, port: int) -> int:
        """Number of open TCP connections of this process to ``port`` of 127.0.0.1."""
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


class FreshProxy(Proxy):
    """A proxy in a fresh interpreter, for tests of its memory and of limits that a process inherits."""

    _is_fresh = True


async def started(stack: AsyncExitStack, folder: Path, *backends: Addressed | str, **settings: str) -> Proxy:
    """A proxy in front of engines of this process, until a test or ``stack`` ends it."""
    return await _started(Proxy, stack, folder, backends, settings)


@asynccontextmanager
async def program(folder: Path, *backends: Addressed | str, **settings: str) -> AsyncIterator[Proxy]:
    """The same; it must exit with code 0."""
    async with AsyncExitStack() as stack:
        proxy = await started(stack, folder, *backends, **settings)
        yield proxy
        await asyncio.to_thread(proxy.stop)


@asynccontextmanager
async def fresh_program(folder: Path, *backends: Addressed | str, **settings: str) -> AsyncIterator[Proxy]:
    """The same with :class:`FreshProxy`."""
    async with AsyncExitStack() as stack:
        proxy = await _started(FreshProxy, stack, folder, backends, settings)
        yield proxy
        await asyncio.to_thread(proxy.stop)


async def _started(
    kind: type[Proxy],
    stack: AsyncExitStack,
    folder: Path,
    backends: Iterable[Addressed | str],
    settings: dict[str, str],
) -> Proxy:
    urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
    proxy = await asyncio.to_thread(kind, folder, urls, **settings)  # it polls the engines before it listens
    stack.callback(proxy.kill)
    return proxy
